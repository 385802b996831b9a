//! `invoke` speaks Triton's protocol; a server of a few lines answers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};

use serde_json::{Value, json};

use crate::support::{fail, succeed, temporary};

/// A request line and a body.
type Request = (String, Value);

/// Answers one request after the other, and tells what they were.
fn serve(answers: Vec<(u16, Value)>) -> (String, JoinHandle<Vec<Request>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let thread = spawn(move || {
        let mut requests = Vec::new();
        let mut answers = answers.into_iter();
        while answers.len() > 0 {
            let (mut stream, _) = listener.accept().unwrap();
            while let Some(request) = read(&mut stream) {
                requests.push(request);
                let Some((status, body)) = answers.next() else {
                    break;
                };
                let body = body.to_string();
                let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).unwrap();
                if answers.len() == 0 {
                    break;
                }
            }
        }
        requests
    });
    (url, thread)
}

fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length, mut line) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let text = line.trim_end();
        if first.is_empty() {
            first = text.to_owned();
        } else if text.is_empty() {
            break;
        } else if let Some((name, value)) = text.split_once(": ")
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some((first, body))
}

fn metadata() -> Value {
    let input = |name: &str| json!({"name": name, "datatype": "BYTES", "shape": [-1, 1]});
    json!({"name": "sd", "inputs": [input("prompt"), input("image"), input("gen_args")]})
}

#[test]
fn invoke_sends_the_request_and_writes_the_images() {
    let folder = temporary();
    fs::write(folder.path().join("in.png"), "image").unwrap();
    let answer = json!({
        "model_name": "sd.tar.gz",
        "parameters": {"seed": 7, "cancelled": false},
        "outputs": [{"name": "generated_image", "datatype": "BYTES", "shape": [1, 2], "data": ["AAE=", "Ag=="]}],
    });
    let (url, server) = serve(vec![(200, metadata()), (200, answer)]);
    let told = succeed(
        folder.path(),
        &[
            "invoke",
            "sd.tar.gz",
            "--url",
            &url,
            "--prompt",
            "a cat",
            "--image",
            "in.png",
            "--seed",
            "7",
            "--model-version",
            "2",
            "--out",
            "p",
        ],
    );
    assert_eq!(told, "cancelled: false\nseed: 7\np-0\np-1\n");
    assert_eq!(fs::read(folder.path().join("p-0")).unwrap(), [0, 1]);
    assert_eq!(fs::read(folder.path().join("p-1")).unwrap(), [2]);
    let requests = server.join().unwrap();
    assert_eq!(requests[0].0, "GET /v2/models/sd.tar.gz/versions/2 HTTP/1.1");
    assert_eq!(requests[1].0, "POST /v2/models/sd.tar.gz/versions/2/infer HTTP/1.1");
    let input = |name: &str, text: &str| json!({"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]});
    assert_eq!(
        requests[1].1["inputs"],
        json!([
            input("prompt", "a cat"),
            input("image", "aW1hZ2U="),
            input("gen_args", r#"{"seed":7}"#)
        ])
    );
}

#[test]
fn invoke_reports_errors_with_their_status() {
    let folder = temporary();
    let refused = json!({"error": "model 'sd': gen_args: unknown key `stesp`"});
    let (url, server) = serve(vec![(200, metadata()), (400, refused)]);
    let error = fail(
        folder.path(),
        &["invoke", "sd", "--url", &url, "--prompt", "p", "--out", "p.png"],
    );
    assert_eq!(error, "error: HTTP 400: model 'sd': gen_args: unknown key `stesp`\n");
    server.join().unwrap();

    let unknown = json!({"error": "Request for unknown model: 'sd' is not found"});
    let (url, server) = serve(vec![(404, unknown)]);
    let error = fail(
        folder.path(),
        &["invoke", "sd", "--url", &url, "--prompt", "p", "--out", "p.png"],
    );
    assert!(
        error.starts_with("error: HTTP 404: Request for unknown model"),
        "{error}"
    );
    server.join().unwrap();

    let error = fail(
        folder.path(),
        &["invoke", "sd", "--url", &url, "--prompt", "p", "--out", "p.png"],
    );
    assert!(error.contains(&format!("{url}v2/models/sd")), "{error}");
    let error = fail(
        folder.path(),
        &[
            "invoke",
            "sd",
            "--url",
            "https://127.0.0.1:1",
            "--prompt",
            "p",
            "--out",
            "p",
        ],
    );
    assert!(error.contains("https"), "{error}");
    assert!(!folder.path().join("p.png").exists());
}
