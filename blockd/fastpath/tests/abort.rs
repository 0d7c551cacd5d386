//! A panic outside the guarded parsers ends the process; one inside them does not.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const ROLE: &str = "BLOCKD_TEST_PANIC";

#[test]
fn an_unguarded_panic_ends_the_process_and_a_guarded_one_does_not() {
    let run = |role: &str| {
        let me = std::env::current_exe().expect("this test's own file");
        let child = Command::new(me).env(ROLE, role).args(["--exact", "child", "--nocapture"]).output();
        child.expect("it runs").status
    };
    assert_eq!(run("unguarded").signal(), Some(6), "SIGABRT");
    assert!(run("guarded").success());
}

/// What the test above runs as a process of its own; without a role there is nothing to do.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    blockd_fastpath::resolve::abort_on_unguarded_panic();
    let guarded = blockd_fastpath::resolve::guarded(|| -> u8 { panic!("inside") });
    assert_eq!(guarded, None);
    if role == "unguarded" {
        let thread = std::thread::spawn(|| panic!("outside"));
        let _ = thread.join();
    }
}
