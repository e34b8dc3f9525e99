//! Unpacks what Complement copies into a container: tar archives of single files, whose parents are not in them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

const BLOCK: usize = 512;

/// Writes the regular files of `archive` below `root`, making parents as needed.
pub fn unpack(archive: &[u8], root: &Path) -> Result<()> {
    for file in files(archive)? {
        let target = root.join(inside(&file.path)?);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, file.content).with_context(|| format!("writing {}", target.display()))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct File<'a> {
    path: String,
    content: &'a [u8],
}

fn files(archive: &[u8]) -> Result<Vec<File<'_>>> {
    let mut found = Vec::new();
    let mut long_path = None;
    let mut rest = archive;
    while rest.len() >= BLOCK && rest[..BLOCK].iter().any(|byte| *byte != 0) {
        let (header, body) = rest.split_at(BLOCK);
        let size = octal(&header[124..136])?;
        let content = body.get(..size).context("the archive ends inside a file")?;
        rest = body.get(size.next_multiple_of(BLOCK)..).unwrap_or_default();
        match header[156] {
            b'0' | 0 => {
                let path = long_path.take().unwrap_or_else(|| path_of(header));
                found.push(File { path, content });
            }
            b'5' => {}
            b'x' => long_path = extended_path(content),
            kind => bail!("an entry of kind '{}' is not supported", char::from(kind)),
        }
    }
    Ok(found)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn octal(field: &[u8]) -> Result<usize> {
    let digits = text(field);
    usize::from_str_radix(digits.trim(), 8).with_context(|| format!("'{digits}' is no size"))
}

fn path_of(header: &[u8]) -> String {
    let name = text(&header[..100]);
    let prefix = if header[257..262] == *b"ustar" { text(&header[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// The `path` record of an extended header, for names that the plain header can't hold: `LENGTH path=VALUE\n`.
fn extended_path(records: &[u8]) -> Option<String> {
    let records = String::from_utf8_lossy(records);
    records.lines().find_map(|line| Some(line.split_once(' ')?.1.strip_prefix("path=")?.to_owned()))
}

fn inside(path: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => bail!("'{path}' leads out of the container"),
        }
    }
    if clean.as_os_str().is_empty() {
        bail!("'{path}' names no file");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u8, name: &str, content: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = kind;
        block[257..262].copy_from_slice(b"ustar");
        block.extend_from_slice(content);
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    }

    #[test]
    fn a_file_is_found_with_its_absolute_path() {
        let mut archive = entry(b'0', "/complement/ca/ca.crt", b"certificate");
        archive.resize(archive.len() + 2 * BLOCK, 0);
        let found = files(&archive).unwrap();
        assert_eq!(found, [File { path: "/complement/ca/ca.crt".to_owned(), content: b"certificate" }]);
        assert_eq!(inside(&found[0].path).unwrap(), Path::new("complement/ca/ca.crt"));
    }

    #[test]
    fn a_long_path_comes_from_the_header_before() {
        let mut archive = entry(b'x', "ignored", b"30 path=complement/a long name\n");
        archive.extend(entry(b'0', "cut off", b"x"));
        archive.extend(entry(b'0', "next", b"y"));
        let paths: Vec<_> = files(&archive).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(paths, ["complement/a long name", "next"]);
    }

    #[test]
    fn nothing_leaves_the_container() {
        assert!(inside("/complement/../../etc/passwd").is_err());
        assert!(inside("/").is_err());
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let archive = entry(b'0', "f", &[b'x'; 600]);
        assert!(files(&archive[..BLOCK + 512]).is_err());
        assert!(files(&entry(b'2', "link", b"")).is_err());
    }
}
