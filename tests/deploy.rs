//! What `deploy/` has for HAProxy and for Kubernetes. (systemd.rs tests the units.)

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::authority::{Authority, Pair};
use crate::proxies::HaProxy;
use crate::support::{AIRLOCK, CLIENT, Server, guest, installed, root, run};
use crate::tls_client::Trust;

fn read(file: &str) -> String {
    fs::read_to_string(root().join("deploy").join(file)).unwrap()
}

/// With these replaced, each of which is there.
fn with(text: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

/// A certificate with its key behind it, as HAProxy wants it.
fn bundle(authority: &Authority, pair: &Pair) -> PathBuf {
    let [certificate, key] = [&pair.chain, &pair.key].map(|file| fs::read(file).unwrap());
    let path = authority.path("bundle.pem");
    fs::write(&path, [certificate, key].concat()).unwrap();
    path
}

#[test]
fn haproxy_finds_no_fault_with_its_configuration() {
    if !installed("haproxy") {
        return;
    }
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let bundle = bundle(&authority, &pair);
    let text = read("haproxy/haproxy.cfg");
    let text = with(
        &text,
        &[("/etc/haproxy/airlock.pem", bundle.to_str().unwrap())],
    );
    let page = authority.path("page.html");
    fs::write(&page, "<!doctype html>").unwrap();
    let page = [
        ("    #http-request", "    http-request"),
        ("/etc/haproxy/page.html", page.to_str().unwrap()),
    ];
    for text in [text.clone(), with(&text, &page)] {
        let file = authority.path("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let output = run(Command::new("haproxy").arg("-c").arg("-f").arg(file), b"");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.trim(), "Configuration file is valid");
    }
}

/// An Airlock as it is to be behind HAProxy, with a guest that answers who its client is.
fn behind_haproxy(folder: &Path, pair: &Pair) -> (Server, [u16; 3]) {
    let file = folder.join("airlock.toml");
    let text = with(
        &read("haproxy/airlock.toml"),
        &[
            ("10.0.0.11:9999", "127.0.0.1:0"),
            ("10.0.0.11:9998", "127.0.0.1:0"),
            ("10.0.0.11:9997", "127.0.0.1:0"),
            ("\"10.0.0.1\"", "\"127.0.0.1\""),
            ("max-connections = 28000", "max-connections = 100"),
            ("/etc/airlock/airlock.pem", pair.chain.to_str().unwrap()),
            ("/etc/airlock/airlock.key", pair.key.to_str().unwrap()),
            (
                "/usr/local/lib/airlock/guestbook.wasm",
                guest("counter").to_str().unwrap(),
            ),
        ],
    );
    fs::write(&file, text).unwrap();
    let (server, addresses) = Server::of_file(&file, 3);
    let ports: Vec<_> = addresses
        .iter()
        .map(|(_, address)| address.port())
        .collect();
    (server, ports.try_into().unwrap())
}

#[test]
fn behind_haproxy_every_door_is_served_and_a_server_that_drains_refuses_nobody() {
    if !installed("haproxy") {
        return;
    }
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let bundle = bundle(&authority, &pair);
    let folders: [TempDir; 2] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [(mut one, ports_of_one), (_two, ports_of_two)] =
        [0, 1].map(|number: usize| behind_haproxy(folders[number].path(), &pair));
    let proxy = HaProxy::configured(3, |binds| {
        let servers = [(11, ports_of_one), (12, ports_of_two)].map(|(last, ports)| {
            let ports = [9999, 9998, 9997].into_iter().zip(ports);
            ports.map(move |(wrote, port)| {
                (
                    format!("10.0.0.{last}:{wrote}"),
                    format!("127.0.0.1:{port}"),
                )
            })
        });
        let mut text = with(
            &read("haproxy/haproxy.cfg"),
            &[
                ("maxconn 40000", "maxconn 100"),
                (":::9999 v4v6", &binds[0]),
                (":::9998 v4v6", &binds[1]),
                (":::443 v4v6", &binds[2]),
                ("/etc/haproxy/airlock.pem", bundle.to_str().unwrap()),
            ],
        );
        for (wrote, address) in servers.into_iter().flatten() {
            text = with(&text, &[(&wrote, &address)]);
        }
        text
    });

    let mut first = Vec::new();
    for last in 1..=10 {
        let mut client = proxy.connect(10 + last);
        assert_eq!(client.ask("peer"), client.address());
        first.push(client);
    }
    let address = SocketAddr::from(([127, 0, 0, 1], proxy.ports[1]));
    let mut client = Trust::new(&authority).connect(address);
    assert_eq!(client.ask("local"), address.to_string());
    let url = format!("wss://localhost:{}", proxy.ports[2]);
    let mut command = Command::new(CLIENT);
    command.args(["--no-greeting", "--connect", &url, "--ca"]);
    let output = run(command.arg(authority.certificate()).arg("local"), b"");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("127.0.0.1:"), "{said}");

    one.signal("TERM");
    let mut let_go = 0;
    for client in &mut first {
        client.send("local\n");
        let_go += usize::from(client.hear() == "error: server is shutting down\n");
    }
    assert!((1..10).contains(&let_go), "{let_go} of 10");
    for last in 1..=10 {
        assert!(proxy.connect(30 + last).ask("peer").starts_with("127.0.0."));
    }
    one.ended();
}

const MANIFESTS: [&str; 6] = [
    "autoscaling.yaml",
    "config.yaml",
    "deployment.yaml",
    "disruption.yaml",
    "network.yaml",
    "service.yaml",
];

/// Python with what CI has installed for this, if it can import that.
fn python(module: &str) -> Option<Command> {
    let mut path = OsString::from(root().join("target/python"));
    if let Some(more) = std::env::var_os("PYTHONPATH") {
        path.push(":");
        path.push(more);
    }
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", path);
    let mut import = Command::new("python3");
    import.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let output = run(import.args(["-c", &format!("import {module}")]), b"");
    let is_there = output.status.success();
    assert!(
        is_there || std::env::var_os("CI").is_none(),
        "CI has to install `{module}` for Python"
    );
    if !is_there {
        eprintln!("skipped: Python has no `{module}`; .ci/run says how to install it");
    }
    is_there.then_some(command)
}

/// By the schemas of its oldest version that has all of it, and of the newest that is known.
#[test]
fn kubernetes_finds_no_fault_with_the_manifests() {
    let folder = root().join("deploy/kubernetes");
    let files = fs::read_dir(&folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, MANIFESTS);
    for version in ["1.30", "1.37"] {
        let Some(mut command) = python("kubernetes_validate") else {
            return;
        };
        command.args(["-m", "kubernetes_validate", "--strict", "-k", version]);
        let output = run(command.args(MANIFESTS).current_dir(&folder), b"");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{version}: {said}");
        assert_eq!(said.matches(" passed ").count(), MANIFESTS.len(), "{said}");
    }
}

/// A manifest as JSON.
fn manifest(file: &str) -> Option<Value> {
    let mut command = python("yaml")?;
    let print = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
    let output = run(
        command.args(["-c", print]),
        read(&format!("kubernetes/{file}")).as_bytes(),
    );
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// What a schema does not see: names in one manifest are those of another.
#[test]
fn the_manifests_belong_together_and_the_drain_has_its_time() {
    let Some(deployment) = manifest("deployment.yaml") else {
        return;
    };
    let [config, service, disruption, autoscaling, network] = [
        "config.yaml",
        "service.yaml",
        "disruption.yaml",
        "autoscaling.yaml",
        "network.yaml",
    ]
    .map(|file| manifest(file).unwrap());
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &disruption["spec"]["selector"]["matchLabels"],
        &network["spec"]["podSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let name = &deployment["metadata"]["name"];
    assert_eq!(&autoscaling["spec"]["scaleTargetRef"]["name"], name);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(
        pod["volumes"][0]["configMap"]["name"],
        config["metadata"]["name"]
    );
    let ports = container["ports"].as_array().unwrap();
    for port in service["spec"]["ports"].as_array().unwrap() {
        assert!(
            ports
                .iter()
                .any(|named| named["name"] == port["targetPort"])
        );
    }

    let seconds = |value: &Value| value.as_u64().unwrap();
    let grace = seconds(&pod["terminationGracePeriodSeconds"]);
    let before = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let drain = "drain-timeout = \"10s\"";
    let text = config["data"]["airlock.toml"].as_str().unwrap();
    assert!(text.contains(drain), "{text}");
    assert!(before + 10 < grace, "{before} s and 10 s of {grace} s");

    // What the pods get is a file that Airlock takes.
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("Test CA");
    let file = folder.path().join("airlock.toml");
    let certificate = authority.certificate();
    let text = with(
        text,
        &[
            ("/run/secrets/redis/ca.pem", certificate.to_str().unwrap()),
            (
                "/run/secrets/redis/credentials",
                certificate.to_str().unwrap(),
            ),
            (
                "/usr/local/lib/airlock/guest.wasm",
                guest("guestbook").to_str().unwrap(),
            ),
        ],
    );
    fs::write(&file, text).unwrap();
    let output = run(
        Command::new(AIRLOCK).arg("check").arg("--config").arg(file),
        b"",
    );
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
}
