//! The file of the control socket: made for its owner alone, a dead one replaced, a living one left alone, removed at the end.

use crate::error::Error;
use crate::sys::unix;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A listening socket and its file, which goes when it goes.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode: the file at `path` may be somebody else's by the time that ours goes.
    identity: Option<(u64, u64)>,
}

/// Mode of the socket: whoever may connect may end sessions.
const MODE: u32 = 0o600;

/// Mode of its directory, if that has to be made.
const DIRECTORY_MODE: u32 = 0o750;

/// Connections that wait in the kernel while all places are taken.
const BACKLOG: u8 = 8;

/// How long one that holds the socket already has to show that it lives. An answer comes at once if there is any.
const PROBE: Duration = Duration::from_secs(1);

impl Socket {
    /// Makes it at `path`, in a directory that is made if it is missing. Both belong to `owner` (uid, gid; `None`: to who
    /// runs this).
    pub(super) fn open(path: &Path, owner: Option<(u32, u32)>) -> Result<Socket, Error> {
        let failed = |why: &dyn std::fmt::Display| Error::new(what(path), why);
        let directory = path.parent().unwrap_or(Path::new("/"));
        make_directory(directory, owner).map_err(|e| {
            failed(&e).hint(format!(
                "the directory {} could not be made, `option control` names another",
                directory.display()
            ))
        })?;
        // two that start at once would each take the other's new socket for a dead one
        let _lock = unix::lock_directory(directory).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => failed(&"another process is making one in the same directory"),
            _ => failed(&e),
        })?;
        remove_dead(path)?;
        let listener = unix::listen(path, MODE, BACKLOG).map_err(|e| failed(&e))?;
        let socket = Socket { listener, path: path.to_owned(), identity: identity(path) };
        own(path, owner).map_err(|e| failed(&e))?;
        Ok(socket)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            // a directory that is not ours any more keeps it; the next start replaces it
            if let Err(e) = fs::remove_file(&self.path) {
                log::debug!("cannot remove {}: {e}", self.path.display());
            }
        }
    }
}

fn what(path: &Path) -> String {
    format!("listen on the control socket {}", path.display())
}

fn make_directory(directory: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => own(directory, owner),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn own(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(user, group)| std::os::unix::fs::lchown(path, Some(user), Some(group)))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Removes a socket on which nobody listens any more; it stays where a daemon was killed.
fn remove_dead(path: &Path) -> Result<(), Error> {
    let failed = |why: &dyn std::fmt::Display| Error::new(what(path), why);
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(&e)),
    };
    if !file.file_type().is_socket() {
        return Err(failed(&"something that is not a socket is there")
            .hint("remove it, or name another path in `option control`"));
    }
    match unix::connect(path, PROBE) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(|e| failed(&e)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(failed(&e)),
        _ => Err(failed(&"another process answers there")
            .hint("tproxyd runs already: stop it first, or give this one another `option control`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("tproxyd-socket-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_with_its_owner() {
        let directory = Directory::new("modes");
        let path = directory.0.join("run/control.sock");
        let socket = Socket::open(&path, None).unwrap();
        assert_eq!((mode(&path), mode(&directory.0.join("run"))), (0o600, 0o750));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = Directory::new("dead");
        let path = directory.0.join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        let living = Socket::open(&path, None).unwrap();
        let error = Socket::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("control.sock") && error.contains("another process answers"), "{error}");
        assert!(path.exists());
        drop(living);
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let directory = Directory::new("file");
        let path = directory.0.join("control.sock");
        fs::write(&path, "precious").unwrap();
        let error = Socket::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_left_alone() {
        let directory = Directory::new("successor");
        let path = directory.0.join("control.sock");
        let old = Socket::open(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Socket::open(&path, None).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn one_starts_at_a_time() {
        let directory = Directory::new("lock");
        let _held = unix::lock_directory(&directory.0).unwrap();
        let error = Socket::open(&directory.0.join("control.sock"), None).unwrap_err().to_string();
        assert!(error.contains("another process is making one"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let directory = Directory::new("missing");
        let error = Socket::open(&directory.0.join("a/b/control.sock"), None).unwrap_err().to_string();
        assert!(error.contains("a/b could not be made"), "{error}");
    }
}
