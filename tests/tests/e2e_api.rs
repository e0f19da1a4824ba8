//! The API as its own document has it: served by the daemon, complete, and true.
//!
//! With `SCHEMATHESIS` set to that program, which `tests/run --api` installs, it asks the daemon whatever
//! the document allows and what it does not.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{Lab, Namespace, require_root};

/// Operations whose answers have no end, or are no JSON: left out of what is asked at random.
const STREAMS: [&str; 3] = ["get_trace", "get_capture", "get_events"];

/// Asks by a method and returns the status, the headers in lower case and the body.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let size = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: causeway\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn document(daemon: &Daemon) -> Value {
    let (status, head, body) = ask(&daemon.socket(), "GET", "/v1/openapi.json", "");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

/// Every operation: path, method, and what is said of it.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "patch", "delete"] {
            if let Some(operation) = item.get(method) {
                all.push((path.as_str(), method, operation));
            }
        }
    }
    all
}

/// Everything that is referred to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "$ref" => {
                        found.insert(text.clone());
                    }
                    value => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_document_describes_every_operation_and_errors_have_its_form() {
    if !require_root("the_document_describes_every_operation_and_errors_have_its_form") {
        return;
    }
    let lab = Lab::new("api");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let document = document(&daemon);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let operations = operations(&document);
    assert!(operations.len() >= 50, "{}", operations.len());
    let mut ids = BTreeMap::new();
    for (path, method, operation) in &operations {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap();
        assert_eq!(ids.insert(id, what.clone()), None, "{what}");
        assert!(
            operation["summary"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{what}"
        );
        let answers = operation["responses"].as_object().unwrap();
        let good = answers.keys().filter(|code| code.starts_with('2'));
        assert_eq!(good.count(), 1, "{what}: {answers:?}");
        let variables = path.matches('{').count();
        let parameters = operation["parameters"].as_array();
        let in_path = parameters
            .into_iter()
            .flatten()
            .filter(|it| it["in"] == "path");
        assert_eq!(in_path.count(), variables, "{what}");
    }
    let mut referred = BTreeSet::new();
    references(&document, &mut referred);
    for reference in &referred {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    // Units and limits are in what is said of fields.
    let mtu = &document["components"]["schemas"]["NetworkCreate"]["properties"]["mtu"];
    assert!(
        mtu["description"].as_str().unwrap().contains("bytes"),
        "{mtu}"
    );

    let wrong = [
        ("GET", "/v1/nothing", "", 404),
        ("PUT", "/v1/networks", "", 405),
        ("GET", "/v1/networks/nope", "", 404),
        ("DELETE", "/v1/publications/x", "", 400),
        ("GET", "/v1/events?after=x", "", 400),
        ("GET", "/v1/why?src=a&dst=b&port=70000", "", 400),
        ("POST", "/v1/networks", "{", 400),
        ("POST", "/v1/networks", r#"{"name": "a", "colour": 1}"#, 400),
        ("POST", "/v1/networks", r#"{"name": 7}"#, 400),
    ];
    for (method, path, body, expected) in wrong {
        let (status, head, answer) = ask(&daemon.socket(), method, path, body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(
            head.contains("content-type: application/json"),
            "{method} {path}: {head}"
        );
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(
            !answer["error"].as_str().unwrap().is_empty(),
            "{method} {path}"
        );
        assert_eq!(head.contains("allow:"), expected == 405, "{head}");
    }
    println!("{} operations, {} forms", operations.len(), referred.len());
}

#[test]
fn schemathesis_finds_neither_a_failure_nor_an_answer_against_the_document() {
    let Some(program) = std::env::var_os("SCHEMATHESIS").map(PathBuf::from) else {
        return println!("the document is not tried at random: tests/run --api does");
    };
    assert!(require_root(
        "schemathesis_finds_neither_a_failure_nor_an_answer_against_the_document"
    ));
    let lab = Lab::new("schemathesis");
    let [host, a] = lab.namespaces(["host", "a"]);
    host.set_up("lo");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    // Something for questions to hit.
    daemon.run(&["network", "create", "0", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "0", "0", &[]);
    daemon.run(&["publish", "add", "8080:80", "0"]);
    let address = by_tcp(&host, daemon.socket());
    // A mirror may be asked to write to any path; the seed is fixed, so that none comes to be here.
    let root_before = names_in("/");
    let mut command = Command::new(program);
    command
        .arg("run")
        .arg(format!("http://{address}/v1/openapi.json"))
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance",
        ])
        .args([
            "--checks",
            "response_schema_conformance,response_headers_conformance",
        ])
        .args([
            "--max-examples",
            "60",
            "--seed",
            "1",
            "--request-timeout",
            "10",
        ])
        .args(STREAMS.map(|id| format!("--exclude-operation-id={id}")))
        .current_dir(lab.dir());
    let output = host.run(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let status = daemon.json(&["status"]);
    assert_eq!(status["api_panics"], 0, "{}", daemon.log());
    assert_eq!(names_in("/"), root_before);
}

fn names_in(directory: &str) -> BTreeSet<std::ffi::OsString> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Has TCP connections to the address that is returned answered by a unix socket.
fn by_tcp(host: &Namespace, socket: PathBuf) -> String {
    let listener = host.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(daemon)) = (client, UnixStream::connect(&socket)) else {
                return;
            };
            std::thread::spawn(move || carry(&client, &daemon));
        }
    });
    address
}

fn carry(client: &TcpStream, daemon: &UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, mut to) = (client, daemon);
            let _ = io::copy(&mut from, &mut to);
            let _ = daemon.shutdown(Shutdown::Write);
        });
        let (mut from, mut to) = (daemon, client);
        let _ = io::copy(&mut from, &mut to);
        let _ = client.shutdown(Shutdown::Both);
    });
}
