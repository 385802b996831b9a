//! What the program tells the shell, the manual and the server about itself.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{fail, run, succeed, temporary};

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let folder = temporary();
    let help = succeed(folder.path(), &["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn completions_know_the_commands() {
    let folder = temporary();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(folder.path(), &["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        assert!(script.contains("negative-prompt"), "{shell}");
    }
    assert_eq!(run(folder.path(), &["completions", "cmd.exe"]).status.code(), Some(2));
}

#[test]
fn bash_completes_with_the_script() {
    let folder = temporary();
    let script = succeed(folder.path(), &["completions", "bash"]);
    // The shell calls the function that the script registers, with the command, the word and the word before.
    let ask = "function=$(complete -p triton-diffusion | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
               COMP_WORDS=(triton-diffusion ben); COMP_CWORD=1; \
               \"$function\" triton-diffusion ben triton-diffusion; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(bash.stdin.take().unwrap(), "{script}\n{ask}\n").unwrap();
    let output = bash.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "benchmark\n");
}

#[test]
fn man_writes_a_page_for_each_command() {
    let folder = temporary();
    succeed(folder.path(), &["man", "--out", "share/man1"]);
    let pages = folder.path().join("share/man1");
    let mut expected: Vec<_> = commands()
        .iter()
        .map(|name| format!("triton-diffusion-{name}.1"))
        .collect();
    expected.push("triton-diffusion.1".into());
    expected.sort();
    let mut written: Vec<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort();
    assert_eq!(written, expected);
    let page = fs::read_to_string(pages.join("triton-diffusion-generate.1")).unwrap();
    assert!(page.starts_with(".ie"), "{page}");
    assert!(page.contains("\\-\\-negative\\-prompt"), "{page}");
}

#[test]
fn backend_directory_needs_the_backend() {
    let folder = temporary();
    // This program is in target/release, where cargo does not put the library into a folder `diffusion`.
    let error = fail(folder.path(), &["backend-directory"]);
    assert!(
        error.contains("../backends/diffusion/libtriton_diffusion.so"),
        "{error}"
    );
}
