//! How every program reads its command line, and how it describes itself: `PROGRAM --generate
//! DIRECTORY` writes its manual pages and what shells complete it with, as they lie under `/usr/share`
//! or `~/.local/share`. They are made of the same definitions as `--help`.

use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// The exit code for what could not be done.
const UNAVAILABLE: i32 = 3;

/// The program's arguments, or its end with a message. `section` is that of its manual pages.
pub(crate) fn matches(command: Command, section: &str) -> ArgMatches {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [generate, directory] = &arguments[..]
        && generate == "--generate"
    {
        let Err(error) = describe(&command, section, Path::new(directory)) else { std::process::exit(0) };
        eprintln!("{}: can't write to {}: {error}", command.get_name(), Path::new(directory).display());
        std::process::exit(UNAVAILABLE);
    }
    command.mut_args(unset_if_empty).get_matches()
}

/// A variable of the environment that is set to nothing is as good as unset.
fn unset_if_empty(argument: Arg) -> Arg {
    let empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
    if argument.get_env().is_some_and(empty) { argument.env(None::<&str>) } else { argument }
}

fn describe(command: &Command, section: &str, share: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, folder, file) in [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (Shell::Zsh, "zsh/vendor-completions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ] {
        let folder = share.join(folder);
        fs::create_dir_all(&folder)?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
        fs::write(folder.join(file), script)?;
    }
    let pages = share.join(format!("man/man{section}"));
    fs::create_dir_all(&pages)?;
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    write_pages(&command, section, &pages)
}

/// The page of a command, and of each of its subcommands.
fn write_pages(command: &Command, section: &str, folder: &Path) -> io::Result<()> {
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let page = Man::new(command.clone().after_help(None::<&str>)).section(section);
    let page = page.source(concat!("thrifty ", env!("CARGO_PKG_VERSION")));
    let mut file = fs::File::create(folder.join(page.get_filename()))?;
    page.render(&mut file)?;
    let mut more = Roff::default();
    for paragraph in examples.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let (heading, text) = match paragraph.split_once('\n') {
            Some(("Example:" | "Examples:", text)) => ("EXAMPLES", text),
            _ => match paragraph.strip_prefix("Exit codes: ") {
                Some(text) => ("EXIT STATUS", text),
                None => ("NOTES", paragraph),
            },
        };
        // What is set in columns stays so.
        let as_it_is = text.lines().any(|line| line.starts_with(' '));
        more.control("SH", [heading]);
        if as_it_is {
            more.control("nf", []);
        }
        for line in text.lines() {
            more.text([roman(line)]);
        }
        if as_it_is {
            more.control("fi", []);
        }
    }
    more.to_writer(&mut file)?;
    file.flush()?;
    command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .try_for_each(|sub| write_pages(sub, section, folder))
}
