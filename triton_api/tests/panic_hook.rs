//! The panic hook, in a separate binary because the hook belongs to the process.

#![expect(clippy::unwrap_used, clippy::panic, reason = "panics are what is tested")]

mod echo;

use std::thread;

use triton_fake::{FakeServer, ModelSpec};

#[test]
fn panic_is_logged_once() {
    triton_api::panic::install_hook();
    triton_api::panic::install_hook();
    let server = FakeServer::new(triton_fake::backend_symbols!());
    let panicked = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(|| panic!("on a thread without a guard"))
        .unwrap()
        .join();
    assert!(panicked.is_err());
    let backend = server.load_backend().unwrap();
    let model = ModelSpec::new("m").config(echo::config("panic_model"));
    assert!(backend.load_model(model).is_err());
    drop(backend);

    let logs: Vec<_> = server.logs().into_iter().filter(|log| log.level == "ERROR").collect();
    assert_eq!(logs.len(), 2, "{logs:#?}");
    assert_eq!(logs[0].message, "thread 'engine' panicked: on a thread without a guard");
    assert!(logs[0].file.ends_with("panic_hook.rs"));
    assert!(logs[1].message.ends_with("panicked: with a secret"));
    assert!(logs[1].file.ends_with("echo/mod.rs") && logs[1].line > 0);
    server.assert_clean();
}
