//! The list as a program for the kernel, and what happens to a call that is not on it.

use super::{REFUSED, calls};
use libc::{c_int, c_long, c_void, siginfo_t};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

/// -1, which debuggers put in place of a call that they answer themselves; the kernel answers `ENOSYS`.
const NO_CALL: c_long = u32::MAX as c_long;

#[cfg(target_arch = "x86_64")]
const PROCESSOR: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const PROCESSOR: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const PROCESSOR: TargetArch = TargetArch::riscv64;

pub(super) fn install() -> io::Result<()> {
    let program = program().map_err(io::Error::other)?;
    answer_in_its_place()?;
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

fn program() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        calls::ANY.iter().chain(calls::OLD).map(|call| (*call, Vec::new())).collect();
    rules.insert(NO_CALL, Vec::new());
    let mut only_if = |call: c_long, conditions: Vec<SeccompCondition>| {
        let one_of = conditions.into_iter().map(|condition| SeccompRule::new(vec![condition]));
        rules.insert(call, one_of.collect::<Result<_, _>>()?);
        Ok::<_, BackendError>(())
    };
    let families = calls::FAMILIES.map(|family| SeccompCondition::new(0, Dword, Eq, family as u64));
    let families: Vec<_> = families.into_iter().collect::<Result<_, _>>()?;
    only_if(libc::SYS_socket, families.clone())?;
    only_if(libc::SYS_socketpair, families)?;
    // memory is for data
    let not_code = SeccompCondition::new(2, Dword, MaskedEq(libc::PROT_EXEC as u64), 0)?;
    only_if(libc::SYS_mmap, vec![not_code.clone()])?;
    only_if(libc::SYS_mprotect, vec![not_code])?;
    // abort(3) sends a signal to itself; it has one thread, whose number is the process's
    let itself = SeccompCondition::new(0, Dword, Eq, std::process::id().into())?;
    only_if(libc::SYS_tgkill, vec![itself.clone()])?;
    only_if(libc::SYS_tkill, vec![itself])?;
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, PROCESSOR)?.try_into()
}

/// Has SIGSYS, which the filter sends, taken by [`refuse`].
fn answer_in_its_place() -> io::Result<()> {
    // SAFETY: all fields are numbers, sets of bits and pointers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refuse as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` lives over the call, and the old one is not asked for. `refuse` does what a handler may: it touches an
    // atomic number and what the kernel hands it.
    super::super::cvt(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}

/// The beginning of `siginfo_t` with the fields for SIGSYS (sigaction(2)), where a long has 64 bits.
#[repr(C)]
struct Refusal {
    signal: c_int,
    errno: c_int,
    code: c_int,
    at: *const c_void,
    call: c_int,
    processor: u32,
}

extern "C" fn refuse(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes both, on this handler's stack; for SIGSYS the fields of `Refusal` are filled.
    let (call, context) = unsafe { ((*info.cast::<Refusal>()).call, &mut *context.cast::<libc::ucontext_t>()) };
    REFUSED.store(call, Ordering::Relaxed);
    let answer = -i64::from(libc::ENOSYS);
    // what the caller will find where a call leaves its result
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RAX as usize] = answer;
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.regs[0] = answer as u64;
    }
    #[cfg(target_arch = "riscv64")]
    {
        context.uc_mcontext.__gregs[10] = answer as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::fork_child;
    use std::os::fd::AsFd;

    /// What `body` says, as one octet, from within a process of its own.
    fn in_child(body: impl FnOnce() -> u8) -> Option<u8> {
        let (ours, theirs) = crate::sys::passing::pair().unwrap();
        let child = fork_child(theirs, |fd| {
            let said = body();
            i32::from(crate::sys::passing::send(fd.as_fd(), &[said], None).is_err())
        })
        .unwrap();
        let mut said = [0; 2];
        let heard = crate::sys::passing::receive(ours.as_fd(), &mut said);
        child.wait();
        heard.ok().filter(|(n, ..)| *n == 1).map(|_| said[0])
    }

    #[test]
    fn the_program_fits_and_names_each_call_once() {
        // BPF_MAXINSNS
        assert!(program().unwrap().len() <= 4_096);
        let mut all: Vec<_> = calls::ANY.iter().chain(calls::OLD).collect();
        all.sort();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_is_not_on_the_list_is_refused_and_noted_and_the_process_lives() {
        let said = in_child(|| {
            if install().is_err() {
                return 0;
            }
            let refused = |call, answer: c_long| {
                let errno = io::Error::last_os_error().raw_os_error();
                answer == -1 && errno == Some(libc::ENOSYS) && super::super::take_refused() == Some(call)
            };
            // SAFETY: none of these calls is given memory.
            unsafe {
                let pid = c_long::from(libc::getpid());
                let sync = refused(libc::SYS_sync as i32, libc::syscall(libc::SYS_sync));
                let other = refused(libc::SYS_tgkill as i32, libc::syscall(libc::SYS_tgkill, pid + 1, pid + 1, 0));
                let own = libc::syscall(libc::SYS_tgkill, pid, pid, 0) == 0;
                let packet = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
                let packet = refused(libc::SYS_socket as i32, packet.into());
                let code = libc::PROT_READ | libc::PROT_EXEC;
                let map = |protection| {
                    libc::mmap(std::ptr::null_mut(), 4_096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
                };
                let code = map(code) == libc::MAP_FAILED && super::super::take_refused() == Some(libc::SYS_mmap as i32);
                let memory = map(libc::PROT_READ) != libc::MAP_FAILED;
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
                let nothing = super::super::take_refused().is_none();
                u8::from(sync && other && own && packet && code && memory && socket && nothing) + 1
            }
        });
        // 0: this kernel, or the emulator, has no filters
        assert!(said == Some(0) || said == Some(2), "{said:?}");
    }
}
