//! Certificates for tests, made by Debian's `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Whoever issues certificates, in a folder of its own.
pub(crate) struct Authority {
    folder: TempDir,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("index.txt"), "").unwrap();
        let config = format!(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = {folder}/index.txt\nnew_certs_dir = {folder}\n\
             certificate = {folder}/ca.pem\nprivate_key = {folder}/ca.key\ndefault_md = sha256\n\
             policy = any\nunique_subject = no\nrand_serial = yes\n\
             [any]\ncommonName = supplied\norganizationName = optional\n",
            folder = path.display()
        );
        fs::write(path.join("ca.cnf"), config).unwrap();
        let authority = Authority { folder };
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem \
             -days 3650 -subj",
            &[&format!("/CN={name}")],
        );
        authority
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Of these hosts, for a month from now on.
    pub(crate) fn issue(&self, file: &str, hosts: &[&str]) -> Pair {
        self.issue_until(file, hosts, SystemTime::now() + 30 * DAY)
    }

    /// The same, for another time: it begins 60 days before its end.
    pub(crate) fn issue_until(&self, file: &str, hosts: &[&str], end: SystemTime) -> Pair {
        let pair = Pair {
            chain: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        self.openssl(
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {file}.key \
                 -out {file}.csr -subj"
            ),
            &[&format!("/O=Example/CN={file}")],
        );
        let names: Vec<_> = hosts.iter().map(|host| format!("DNS:{host}")).collect();
        let extensions = format!("subjectAltName = {}\n", names.join(","));
        fs::write(self.path("extensions"), extensions).unwrap();
        let date = |time| {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            text.replace(['-', ':', 'T'], "")
        };
        self.openssl(
            &format!(
                "ca -config ca.cnf -batch -notext -preserveDN -extfile extensions \
                 -in {file}.csr -out {file}.pem -startdate {} -enddate {}",
                date(end - 60 * DAY),
                date(end)
            ),
            &[],
        );
        pair
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn openssl(&self, words: &str, last: &[&str]) {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .args(last)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {words}: {errors}");
    }
}

impl Pair {
    /// As the options of a door with this certificate, on any port.
    pub(crate) fn listen(&self, more: &str) -> String {
        let [chain, key] = [&self.chain, &self.key].map(|path| shown(path));
        format!("--listen=tls://127.0.0.1:0?cert={chain}&key={key}{more}")
    }
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
