//! A client that speaks TLS and sends exactly what it is told.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::authority::{Authority, Pair};
use crate::support::{PATIENCE, Server};

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// What clients trust and show.
#[derive(Clone)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl Trust {
    pub(crate) fn new(authority: &Authority) -> Trust {
        Trust::with(authority, &VERSIONS, None)
    }

    pub(crate) fn with(
        authority: &Authority,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<&Pair>,
    ) -> Trust {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(authority.certificate()).unwrap();
        roots.add(root).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = CertificateDer::pem_file_iter(&own.chain).unwrap();
                let chain = chain.collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Trust(Arc::new(config))
    }

    /// What a client says first.
    pub(crate) fn client_hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.connection("localhost").write_tls(&mut hello).unwrap();
        hello
    }

    /// One to a server of this name, before its handshake.
    pub(crate) fn connection(&self, host: &str) -> ClientConnection {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        ClientConnection::new(Arc::clone(&self.0), name).unwrap()
    }

    /// Connects and shakes hands, with a write for each byte.
    pub(crate) fn connect_byte_by_byte(&self, server: SocketAddr) -> TlsClient {
        let mut stream = StreamOwned::new(self.connection("localhost"), connect(server));
        while stream.conn.is_handshaking() || stream.conn.wants_write() {
            let mut bytes = Vec::new();
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut bytes).unwrap();
            }
            for byte in bytes {
                stream.sock.write_all(&[byte]).unwrap();
            }
            if stream.conn.is_handshaking() {
                stream.conn.read_tls(&mut stream.sock).unwrap();
                stream.conn.process_new_packets().unwrap();
            }
        }
        TlsClient {
            stream: BufReader::new(stream),
        }
    }

    /// Connects and shakes hands.
    pub(crate) fn connect(&self, server: SocketAddr) -> TlsClient {
        self.try_connect(server, "localhost").unwrap()
    }

    pub(crate) fn try_connect(&self, server: SocketAddr, host: &str) -> io::Result<TlsClient> {
        self.shake_hands(connect(server), host)
    }

    pub(crate) fn shake_hands(&self, stream: TcpStream, host: &str) -> io::Result<TlsClient> {
        let mut stream = StreamOwned::new(self.connection(host), stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsClient {
            stream: BufReader::new(stream),
        })
    }
}

/// A plain connection.
pub(crate) fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) struct TlsClient {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl TlsClient {
    /// Each in a record of its own.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// One line with its ending; empty at the end of input.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        let answer = self.hear();
        answer
            .strip_suffix('\n')
            .unwrap_or_else(|| panic!("{line:?} was answered {answer:?}"))
            .to_owned()
    }

    /// All that comes until the server's `close_notify`.
    pub(crate) fn rest(&mut self) -> String {
        self.try_rest().unwrap()
    }

    pub(crate) fn try_rest(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.stream.read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn read_exact(&mut self, room: &mut [u8]) {
        self.stream.read_exact(room).unwrap();
    }

    /// Says that nothing more comes, and keeps the connection.
    pub(crate) fn close_notify(&mut self) {
        let stream = self.stream.get_mut();
        stream.conn.send_close_notify();
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }

    /// Ends the connection's input without a word.
    pub(crate) fn cut(&mut self) {
        self.socket().shutdown(Shutdown::Write).unwrap();
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream.get_ref().sock
    }

    pub(crate) fn connection(&mut self) -> &mut ClientConnection {
        &mut self.stream.get_mut().conn
    }

    /// Sends this line again and again, until the server has not taken any more for a while; and how
    /// often that was. A part of the last one is left.
    pub(crate) fn send_until_stalled(&mut self, line: &[u8]) -> usize {
        let pause = Some(Duration::from_millis(300));
        self.socket().set_write_timeout(pause).unwrap();
        let stream = self.stream.get_mut();
        let mut count = 0;
        let stalled = loop {
            if !stream.conn.wants_write() {
                stream.conn.writer().write_all(line).unwrap();
                count += 1;
            }
            if let Err(error) = stream.conn.write_tls(&mut stream.sock) {
                break error;
            }
        };
        assert_eq!(stalled.kind(), ErrorKind::WouldBlock);
        count
    }

    /// So many bytes of replies, read while what is left is sent.
    pub(crate) fn hear_while_sending(&mut self, bytes: usize) -> Vec<u8> {
        let stream = self.stream.get_mut();
        stream.sock.set_nonblocking(true).unwrap();
        let (mut heard, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while heard.len() < bytes {
            assert!(
                Instant::now() < deadline,
                "{} of {bytes} bytes",
                heard.len()
            );
            let sent = stream.conn.wants_write() && stream.conn.write_tls(&mut stream.sock).is_ok();
            let received = stream.conn.read_tls(&mut stream.sock);
            stream.conn.process_new_packets().unwrap();
            let _ = stream.conn.reader().read_to_end(&mut heard);
            if !sent && received.is_err() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        stream.sock.set_nonblocking(false).unwrap();
        self.socket().set_write_timeout(Some(PATIENCE)).unwrap();
        heard
    }

    /// Sends what the connection itself has to say.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let stream = self.stream.get_mut();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut stream.sock)?;
        }
        Ok(())
    }
}

/// A server for `localhost`, and whoever issued its certificate.
pub(crate) fn started(options: &[&str]) -> (Server, Authority) {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let server = Server::start(&[&[&*pair.listen("")], options].concat());
    (server, authority)
}

pub(crate) fn greeted(trust: &Trust, server: &Server) -> TlsClient {
    let mut client = trust.connect(server.tcp());
    assert_eq!(client.hear(), "Welcome!\n");
    client
}
