//! Holds the layers apart: reads every `crate::` path of the sources and fails on one that points
//! to a layer further down the list.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Each may use itself and those before it.
const LAYERS: [&str; 10] =
    ["core", "storage", "replica", "wire", "client", "cache", "location", "store", "gateway", "node"];

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|known| *known == layer)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The layers that a source names after `crate::`, with the line.
fn named(source: &str) -> Vec<(usize, String)> {
    let code = source.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.flat_map(|(number, line)| {
        let paths = line.split("crate::").skip(1);
        let layer = |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        paths.map(move |path| (number + 1, layer(path))).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn no_layer_uses_one_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let Some(own) = rank(first.trim_end_matches(".rs")) else { continue };
        for (line, layer) in named(&fs::read_to_string(&file).unwrap()) {
            if rank(&layer).is_some_and(|other| other > own) {
                wrong.push(format!("{}:{line} uses {layer}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "a layer uses one above it:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_paths_in_code_and_not_in_comments() {
    let source = "use crate::core::node;\n// crate::store\nlet x = crate::wire::convert::y();";
    assert_eq!(named(source), [(1, "core".into()), (3, "wire".into())]);
}
