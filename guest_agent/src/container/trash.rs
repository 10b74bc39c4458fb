//! Removing what a container wrote: any tree, however deep or large, with little memory and two descriptors.
//!
//! Each folder's subfolders are moved up into the trash before it is removed, so nothing here goes deep.

use std::ffi::OsString;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;

fn move_up(from: &Path, trash: &Path, serial: &mut u64) -> Result<(), Error> {
    loop {
        *serial += 1;
        match fs::rename(from, trash.join(OsString::from(serial.to_string()))) {
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
            Err(error) if error.kind() == ErrorKind::NotADirectory => {}
            result => return result,
        }
    }
}

/// Removes up to `most` entries; true when all are gone, and the trash itself.
pub fn empty(trash: &Path, mut most: usize) -> Result<bool, Error> {
    let mut serial = 0;
    loop {
        let mut found = false;
        for entry in fs::read_dir(trash)? {
            let entry = entry?;
            found = true;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if most == 0 {
                    return Ok(false);
                }
                most -= 1;
                if inner.file_type()?.is_dir() {
                    move_up(&inner.path(), trash, &mut serial)?;
                } else {
                    fs::remove_file(inner.path())?;
                }
            }
            fs::remove_dir(entry.path())?;
        }
        if !found {
            fs::remove_dir(trash)?;
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn deep_trees_go_in_portions() {
        let base = std::env::temp_dir().join(format!("thaw-trash-{}", std::process::id()));
        let (trash, kept) = (base.join("trash"), base.join("kept"));
        fs::create_dir_all(&kept).unwrap();
        let mut at = trash.join("upper");
        for number in 0..100 {
            at = at.join("1");
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join(format!("file{number}")), "x").unwrap();
        }
        symlink(&kept, at.join("link")).unwrap();
        fs::write(trash.join("2"), "a name that moving up would give").unwrap();
        assert!(!empty(&trash, 50).unwrap());
        assert!(empty(&trash, usize::MAX).unwrap());
        assert!(!trash.exists() && kept.exists());
        fs::remove_dir_all(&base).unwrap();
    }
}
