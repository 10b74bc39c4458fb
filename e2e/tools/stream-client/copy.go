package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// pack writes a tree as tar, with paths relative to it, in kubectl's way: as it goes.
func pack(dir string, to io.Writer) error {
	archive := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		header, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		if header.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		if err := archive.WriteHeader(header); err != nil || entry.IsDir() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(archive, file)
		return err
	})
	return errors.Join(err, archive.Close())
}

// unpack reads a tar of folders and files below dir.
func unpack(from io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(from)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, from)
			return err
		}
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeDir {
			if err := root.MkdirAll(header.Name, 0o755); err != nil {
				return err
			}
			continue
		}
		file, err := root.Create(header.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, archive)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
}

func upload(ctx context.Context, executor remotecommand.Executor, dir string) any {
	result := &outcome{Stdout: newOutput(), Stderr: newOutput()}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(pack(dir, writer)) }()
	begun := time.Now()
	result.judge(executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: reader, Stdout: result.Stdout, Stderr: result.Stderr,
	}))
	result.Seconds = time.Since(begun).Seconds()
	result.Stdout.end()
	result.Stderr.end()
	return result
}

func download(ctx context.Context, executor remotecommand.Executor, dir string) any {
	result := &outcome{Stdout: newOutput(), Stderr: newOutput()}
	reader, writer := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := unpack(reader, dir)
		reader.CloseWithError(err)
		unpacked <- err
	}()
	begun := time.Now()
	result.judge(executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdout: io.MultiWriter(writer, result.Stdout), Stderr: result.Stderr,
	}))
	result.Seconds = time.Since(begun).Seconds()
	writer.Close()
	if err := <-unpacked; err != nil {
		result.Error = err.Error()
	}
	result.Stdout.end()
	result.Stderr.end()
	return result
}
