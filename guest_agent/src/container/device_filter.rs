//! `linux.resources.devices` as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, which the kernel asks at every open and
//! mknod of a device: the only device controller of cgroup v2.
//!
//! Of the rules that match a device the last one decides, for each of read, write and mknod; what none decides is denied.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::container::cgroup::Cgroup;
use crate::container::spec::DeviceRule;
use crate::fault::{Doing, Fault, Outcome};
use crate::sys;

const MAX_RULES: usize = 256;
// include/uapi/linux/bpf.h, BPF_DEVCG_*.
const BLOCK: u64 = 1;
const CHARACTER: u64 = 2;
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;
/// The kernel's device numbers: 12 bits of major, 20 of minor.
const MAJORS: i64 = 1 << 12;
const MINORS: i64 = 1 << 20;

/// A rule on the key `type << 32 | major << 20 | minor`: it matches where `key & mask == value`.
#[derive(Debug)]
struct Match {
    mask: u64,
    value: u64,
    access: u8,
    allow: bool,
}

fn access(text: &str) -> Outcome<u8> {
    text.chars().try_fold(0, |access, letter| {
        Ok(access
            | match letter {
                'm' => MKNOD,
                'r' => READ,
                'w' => WRITE,
                _ => return Err(Fault::invalid(format!("linux.resources.devices: access {text:?} is not of r, w, m"))),
            })
    })
}

/// None for a rule that matches no device.
fn translate(rule: &DeviceRule) -> Outcome<Option<Match>> {
    let (mut mask, mut value) = match rule.kind.as_str() {
        "" | "a" => (0, 0),
        "b" => (0xffff << 32, BLOCK << 32),
        "c" | "u" => (0xffff << 32, CHARACTER << 32),
        other => return Err(Fault::invalid(format!("linux.resources.devices: unknown type {other:?}"))),
    };
    for (number, count, shift) in [(rule.major, MAJORS, 20), (rule.minor, MINORS, 0)] {
        if let Some(number) = number.filter(|number| *number >= 0) {
            if number >= count {
                return Ok(None);
            }
            mask |= (count - 1).cast_unsigned() << shift;
            value |= number.cast_unsigned() << shift;
        }
    }
    let access = if rule.access.is_empty() { ALL } else { access(&rule.access)? };
    Ok(Some(Match { mask, value, access, allow: rule.allow }))
}

// Registers: the verdict, the context, what is still undecided of the access, the key, a constant.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const WANTED: u8 = 2;
const KEY: u8 = 3;
const CONSTANT: u8 = 4;
// Operations, as RFC 9669 encodes them: 64-bit arithmetic and jumps, by constant (K) or register (X).
const LOAD_WORD: u8 = 0x61;
const LOAD_CONSTANT: u8 = 0x18;
const MOVE_K: u8 = 0xb7;
const MOVE_X: u8 = 0xbf;
const AND_K: u8 = 0x57;
const AND_X: u8 = 0x5f;
const OR_X: u8 = 0x4f;
const SHIFT_LEFT_K: u8 = 0x67;
const SHIFT_RIGHT_K: u8 = 0x77;
const JUMP_EQUAL_K: u8 = 0x15;
const JUMP_UNEQUAL_K: u8 = 0x55;
const JUMP_UNEQUAL_X: u8 = 0x5d;
const EXIT: u8 = 0x95;

fn op(code: u8, target: u8, source: u8, offset: usize, constant: i32) -> u64 {
    u64::from(code)
        | u64::from(target) << 8
        | u64::from(source) << 12
        | (offset as u64 & 0xffff) << 16
        | u64::from(constant.cast_unsigned()) << 32
}

fn load_constant(target: u8, value: u64) -> [u64; 2] {
    [op(LOAD_CONSTANT, target, 0, 0, (value as u32).cast_signed()), value & 0xffff_ffff_0000_0000]
}

fn decide(allow: bool) -> [u64; 2] {
    [op(MOVE_K, VERDICT, 0, 0, i32::from(allow)), op(EXIT, 0, 0, 0, 0)]
}

/// What follows when the rule matches.
fn body(rule: &Match) -> Vec<u64> {
    let access = i32::from(rule.access);
    let mut code = match (rule.access, rule.allow) {
        (ALL, _) => Vec::new(),
        (_, true) => vec![op(AND_K, WANTED, 0, 0, !access), op(JUMP_UNEQUAL_K, WANTED, 0, 2, 0)],
        (_, false) => vec![
            op(MOVE_X, VERDICT, WANTED, 0, 0),
            op(AND_K, VERDICT, 0, 0, access),
            op(JUMP_EQUAL_K, VERDICT, 0, 2, 0),
        ],
    };
    code.extend(decide(rule.allow));
    code
}

/// The rules as instructions. One compare for a rule, so that the kernel's verifier walks the program once.
pub fn compile(rules: &[DeviceRule]) -> Outcome<Vec<u64>> {
    if rules.len() > MAX_RULES {
        return Err(Fault::invalid(format!("linux.resources.devices: more than {MAX_RULES} rules")));
    }
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    let mut code = vec![
        op(LOAD_WORD, KEY, CONTEXT, 0, 0),
        op(MOVE_X, WANTED, KEY, 0, 0),
        op(SHIFT_RIGHT_K, WANTED, 0, 0, 16),
        op(AND_K, KEY, 0, 0, 0xffff),
        op(SHIFT_LEFT_K, KEY, 0, 0, 12),
        op(LOAD_WORD, CONSTANT, CONTEXT, 4, 0),
        op(OR_X, KEY, CONSTANT, 0, 0),
        op(SHIFT_LEFT_K, KEY, 0, 0, 20),
        op(LOAD_WORD, CONSTANT, CONTEXT, 8, 0),
        op(OR_X, KEY, CONSTANT, 0, 0),
        op(JUMP_UNEQUAL_K, WANTED, 0, 2, 0),
    ];
    code.extend(decide(true));
    let matches = rules.iter().map(translate).collect::<Outcome<Vec<_>>>()?;
    for rule in matches.iter().rev().flatten() {
        let body = body(rule);
        if rule.mask != 0 {
            code.extend(load_constant(CONSTANT, rule.mask));
            code.extend([op(MOVE_X, VERDICT, KEY, 0, 0), op(AND_X, VERDICT, CONSTANT, 0, 0)]);
            code.extend(load_constant(CONSTANT, rule.value));
            code.push(op(JUMP_UNEQUAL_X, VERDICT, CONSTANT, body.len(), 0));
        }
        code.extend(body);
        if rule.mask == 0 && rule.access == ALL {
            // It decides everything, and the kernel refuses instructions that are never reached.
            return Ok(code);
        }
    }
    code.extend(decide(false));
    Ok(code)
}

/// The program that was loaded last: containers of a pod have the same rules as a rule.
#[derive(Default)]
pub struct Filters {
    loaded: Option<(Vec<u64>, OwnedFd)>,
}

/// Has the kernel ask at every open from here on. Otherwise the first filter switches that on and the last one off again,
/// by patching the kernel's code: 3 ms under emulation for each container of a pod with one.
pub fn prepare(cgroup: BorrowedFd<'_>) -> std::io::Result<()> {
    let program = sys::load_device_filter(&decide(true))?;
    sys::attach_device_filter(cgroup, program.as_fd())
}

impl Filters {
    /// Puts the rules in force for a cgroup; no rules mean no program.
    pub fn attach(&mut self, cgroup: &Cgroup, rules: &[DeviceRule]) -> Outcome<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let code = compile(rules)?;
        let program = match self.loaded.take_if(|(loaded, _)| *loaded == code) {
            Some((_, program)) => program,
            None => sys::load_device_filter(&code).doing(|| "load the device filter".to_owned())?,
        };
        let (_, program) = self.loaded.insert((code, program));
        sys::attach_device_filter(cgroup.open()?.as_fd(), program.as_fd())
            .doing(|| "attach the device filter".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Asked {
        kind: u64,
        major: u32,
        minor: u32,
        access: u8,
    }

    /// Runs the instructions that `compile` uses, by RFC 9669.
    fn execute(code: &[u64], asked: Asked) -> bool {
        let context = [u32::from(asked.access) << 16 | asked.kind as u32, asked.major, asked.minor];
        let (mut registers, mut at) = ([0_u64; 11], 0);
        loop {
            let bits = code[at];
            let (code_byte, target, source) = (bits as u8, (bits >> 8 & 15) as usize, (bits >> 12 & 15) as usize);
            let (offset, constant) = ((bits >> 16 & 0xffff) as usize, i64::from((bits >> 32) as i32) as u64);
            at += 1;
            match code_byte {
                LOAD_WORD => registers[target] = u64::from(context[offset / 4]),
                LOAD_CONSTANT => {
                    registers[target] = constant & 0xffff_ffff | code[at] & !0xffff_ffff;
                    at += 1;
                }
                MOVE_K => registers[target] = constant,
                MOVE_X => registers[target] = registers[source],
                AND_K => registers[target] &= constant,
                AND_X => registers[target] &= registers[source],
                OR_X => registers[target] |= registers[source],
                SHIFT_LEFT_K => registers[target] <<= constant,
                SHIFT_RIGHT_K => registers[target] >>= constant,
                JUMP_EQUAL_K if registers[target] == constant => at += offset,
                JUMP_UNEQUAL_K if registers[target] != constant => at += offset,
                JUMP_UNEQUAL_X if registers[target] != registers[source] => at += offset,
                JUMP_EQUAL_K | JUMP_UNEQUAL_K | JUMP_UNEQUAL_X => {}
                EXIT => return registers[0] != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    /// The rules as they read: each bit of the access by the last rule that matches.
    fn evaluate(rules: &[DeviceRule], asked: Asked) -> bool {
        [(MKNOD, 'm'), (READ, 'r'), (WRITE, 'w')].into_iter().filter(|(bit, _)| asked.access & bit != 0).all(
            |(_, letter)| {
                let deciding = rules.iter().rev().find(|rule| {
                    let kind = match rule.kind.as_str() {
                        "b" => asked.kind == BLOCK,
                        "c" | "u" => asked.kind == CHARACTER,
                        _ => true,
                    };
                    let number = |rule: Option<i64>, asked: u32| rule.is_none_or(|n| n < 0 || n == i64::from(asked));
                    kind && number(rule.major, asked.major)
                        && number(rule.minor, asked.minor)
                        && (rule.access.is_empty() || rule.access.contains(letter))
                });
                deciding.is_some_and(|rule| rule.allow)
            },
        )
    }

    fn rules() -> impl Strategy<Value = Vec<DeviceRule>> {
        let number = || prop::option::of(prop_oneof![-1_i64..4, Just(136), Just(4095), Just(4096), Just(i64::MAX)]);
        let kind = prop::sample::select(vec!["", "a", "b", "c", "u"]);
        let access = prop::sample::select(vec!["", "r", "w", "m", "rw", "rm", "wm", "rwm"]);
        let rule = (any::<bool>(), kind, number(), number(), access).prop_map(|(allow, kind, major, minor, access)| {
            DeviceRule { allow, kind: kind.to_owned(), major, minor, access: access.to_owned() }
        });
        prop::collection::vec(rule, 0..8)
    }

    fn asked() -> impl Strategy<Value = Asked> {
        let number = || prop_oneof![0_u32..4, Just(136), Just(4095)];
        (prop_oneof![Just(BLOCK), Just(CHARACTER)], number(), number(), 0_u8..8)
            .prop_map(|(kind, major, minor, access)| Asked { kind, major, minor, access })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_program_is_the_rules(rules in rules(), asked in prop::collection::vec(asked(), 1..16)) {
            let code = compile(&rules).unwrap();
            for asked in asked {
                prop_assert_eq!(execute(&code, asked), evaluate(&rules, asked), "{:?}", asked);
            }
        }
    }

    #[test]
    fn nothing_follows_a_rule_that_decides_everything() {
        let parse = |json: &str| compile(&serde_json::from_str::<Vec<DeviceRule>>(json).unwrap());
        let deny = r#"{"allow":false,"access":"rwm"}"#;
        let only = parse(&format!("[{deny}]")).unwrap();
        assert_eq!(parse(&format!(r#"[{{"allow":true,"type":"c","major":1}},{deny}]"#)).unwrap(), only);
        assert!(!execute(&only, Asked { kind: CHARACTER, major: 1, minor: 3, access: READ }));
        assert!(execute(&only, Asked { kind: CHARACTER, major: 1, minor: 3, access: 0 }));
        assert!(parse(r#"[{"allow":true,"access":"rx"}]"#).unwrap_err().message.contains("rx"));
        assert!(parse(r#"[{"allow":true,"type":"p"}]"#).unwrap_err().message.contains('p'));
        assert!(parse(&format!("[{}]", [deny; 257].join(","))).is_err());
    }
}
