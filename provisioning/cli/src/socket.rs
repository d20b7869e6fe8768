//! The admin socket in the data folder: bound for its owner only, reachable however long the folder's path is.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tavi_enrol::admin::SOCKET_NAME;
use tokio::net::{UnixListener, UnixStream};

/// How many bytes of a path fit into a socket address on Linux, its final NUL left out (unix(7)).
const MAX_PATH: usize = 107;
/// Read and write for the owner, nothing for others.
const MODE: u32 = 0o600;
const BACKLOG: i32 = 64;

/// Binds the admin socket in the data folder, mode 0600 from its first moment; replaces one that nobody serves.
///
/// Needs a tokio runtime. The caller holds the store's lock, so that two brokers do not race for the file.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if a broker answers there, [`io::ErrorKind::AlreadyExists`] if the file is no
/// socket, else what the system says.
pub fn bind(folder: &Path) -> io::Result<UnixListener> {
    let address = Address::of(folder)?;
    remove_stale(&address.path)?;
    let socket = owner_only(Socket::new(Domain::UNIX, Type::STREAM, None)?)?;
    socket.bind(&SockAddr::unix(&address.path)?)?;
    // Where the system does not take the mode from the socket, it is set late rather than never.
    fs::set_permissions(&address.path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Connects to the admin socket in the data folder. Needs a tokio runtime.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] or [`io::ErrorKind::ConnectionRefused`] if no broker serves it, else what the
/// system says.
pub async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let address = Address::of(folder)?;
    UnixStream::connect(&address.path).await
}

/// A path that fits into a socket address, and what keeps it valid.
struct Address {
    path: PathBuf,
    _folder: Option<File>,
}

impl Address {
    /// A folder whose path is too long is reached through an open descriptor of it (proc(5), `/proc/self/fd`).
    fn of(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET_NAME);
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }
}

/// Linux gives a bound socket's file the mode of the socket itself, so that there is no moment of a wider one.
fn owner_only(socket: Socket) -> io::Result<Socket> {
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(OwnedFd::from(file).into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{SOCKET_NAME} exists and is no socket")));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, format!("a broker serves {SOCKET_NAME} already"))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn speaks(folder: &Path) {
        let listener = bind(folder).unwrap();
        let mut client = connect(folder).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"hi").await.unwrap();
        let mut heard = [0; 2];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hi");
        let mode = fs::symlink_metadata(folder.join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[tokio::test]
    async fn a_short_path_works() {
        speaks(tempfile::tempdir().unwrap().path()).await;
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_mode_is_there_from_the_first_moment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET_NAME);
        let socket = owner_only(Socket::new(Domain::UNIX, Type::STREAM, None).unwrap()).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_address_works() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        speaks(&deep).await;
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_replaced_and_a_served_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        drop(bind(folder.path()).unwrap());
        assert!(folder.path().join(SOCKET_NAME).exists());
        let _serving = bind(folder.path()).unwrap();
        assert_eq!(bind(folder.path()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn another_file_of_that_name_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SOCKET_NAME);
        fs::write(&file, "precious").unwrap();
        assert_eq!(bind(folder.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
