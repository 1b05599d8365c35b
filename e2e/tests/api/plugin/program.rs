//! The program itself: what it links, its help, its completion.

use std::path::Path;

use super::*;

/// The agent links libnftnl, which is under the GPL; the plugin shares the agent's compiler and must not.
#[test]
fn the_plugin_links_no_library_of_the_agents() {
    let bytes = fs::read(program()).unwrap();
    let names = |library: &str| bytes.windows(library.len()).any(|w| w == library.as_bytes());
    assert!(
        names("ring_core_"),
        "a library that it links is found by its symbols"
    );
    assert!(!names("nftnl_rule_") && !names("mnl_socket_"));
}

#[test]
fn completion_is_a_script_of_each_shell() {
    let plugin = Plugin::of(shared());
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = plugin.says(&["completion", shell]);
        assert_eq!(said.code, Some(0), "{shell}: {}", said.err);
        assert!(said.out.contains("migrate"), "{shell}: {}", said.out);
    }
    let script = plugin.says(&["completion", "bash"]).out;
    let understood = |script: &str| {
        let bash = Command::new("bash").args(["-n", "-c", script]).status();
        bash.unwrap().success()
    };
    assert!(understood(&script));
    assert!(!understood(&format!("{script}\nif")), "bash sees what is wrong");
}

#[test]
fn the_help_of_every_question_has_examples() {
    let plugin = Plugin::of(shared());
    for question in ["explain", "status", "plan", "lint", "migrate", "completion"] {
        let said = plugin.says(&[question, "--help"]);
        assert_eq!(said.code, Some(0), "{question}");
        assert!(said.out.contains("Examples:\n  "), "{question}: {}", said.out);
        assert!(plugin.says(&["--help"]).out.contains(question));
    }
}

/// No interpreter is named in the program's headers: it runs wherever its kernel does.
#[test]
fn the_program_is_static() {
    const PT_INTERP: u32 = 3;
    let has_interpreter = |program: &Path| {
        let file = fs::read(program).unwrap();
        let half = |at: usize| usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
        let offset = u64::from_le_bytes(file[32..40].try_into().unwrap());
        // ELF-64: the offset, size and number of the program headers, which begin with their type.
        let (size, number) = (half(54), half(56));
        let headers = (0..number).map(|i| usize::try_from(offset).unwrap() + i * size);
        let mut kinds = headers.map(|at| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()));
        kinds.any(|kind| kind == PT_INTERP)
    };
    assert!(
        has_interpreter(&env::current_exe().unwrap()),
        "this test's own program has one"
    );
    assert!(!has_interpreter(program()));
    let version = Command::new(program()).arg("--version").output().unwrap();
    assert!(version.status.success());
    let policy = policy("p", spec_from_gateway()).to_string();
    let lint = Plugin::of(shared()).says_of(&["lint", "-"], &policy);
    assert_eq!(lint.code, Some(0), "{}{}", lint.out, lint.err);
}
