//! ImageNet's classes by name.

use anyhow::{Result, bail, ensure};

/// WordNet's names of the 1000 classes, one line a class, synonyms by commas.
const NAMES: &str = include_str!("classes.txt");

/// A class of a network with `classes` of them: by number, or by ImageNet name where there are 1000.
pub(crate) fn parse(text: &str, classes: usize) -> Result<u32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<u32>() {
        ensure!((number as usize) < classes, "--label {number} is no class; use 0 to {}", classes - 1);
        return Ok(number);
    }
    ensure!(
        classes == 1000,
        "--label `{text}` is a name, but these weights have {classes} classes, not ImageNet's; use a number"
    );
    let wanted = text.to_lowercase();
    let has = |line: &str, test: &dyn Fn(&str) -> bool| line.to_lowercase().split(", ").any(test);
    let matching = |test: &dyn Fn(&str) -> bool| -> Vec<(usize, &str)> {
        NAMES.lines().enumerate().filter(|(_, line)| has(line, test)).collect()
    };
    let exact = matching(&|name| name == wanted);
    if let [(number, _)] = exact[..] {
        return Ok(number as u32);
    }
    let near = if exact.is_empty() { matching(&|name| name.contains(&wanted)) } else { exact };
    match &near[..] {
        [] => bail!("--label `{text}` is no ImageNet class; see `--list-labels`"),
        [(number, _)] => Ok(*number as u32),
        some => {
            let list: Vec<String> = some.iter().take(8).map(|(i, line)| format!("{i} {line}")).collect();
            bail!("--label `{text}` is several ImageNet classes; use a number: {}", list.join("; "))
        }
    }
}

/// All names, numbered.
pub(crate) fn list() -> String {
    NAMES.lines().enumerate().map(|(i, line)| format!("{i:4} {line}\n")).collect()
}

/// The name of a class, where it is ImageNet's.
pub(crate) fn name(class: u32, classes: usize) -> Option<&'static str> {
    NAMES.lines().nth(class as usize).filter(|_| classes == 1000)
}
