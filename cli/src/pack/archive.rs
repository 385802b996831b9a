//! A folder as a `.tar.gz`; the same files give the same bytes.

use std::fs;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use diffusion_core::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::{files, progress};

/// Writes the folder `model` as an archive of one folder, `name`; follows links. The archive gets its name when it is
/// complete.
///
/// # Errors
/// Errors of the file system.
pub fn write(out: &Path, model: &Path, name: &str, compression: u32) -> Result<()> {
    let failed = |error: std::io::Error| files::failed(out, &error);
    let mut paths = Vec::new();
    list(model, &PathBuf::from(name), &mut paths)?;
    let mut total = 0;
    for (path, _) in &paths {
        total += files::length(path)?;
    }
    let bar = progress::bytes(total, "archive");

    let mut file = files::temporary_file(&files::folder_of(out))?;
    // Without a time and a name in gzip's header.
    let gzip = GzBuilder::new().write(BufWriter::new(&mut file), Compression::new(compression));
    let mut archive = Builder::new(gzip);
    for (path, name) in &paths {
        let (header, contents) = entry(path)?;
        append(&mut archive, header, name, bar.wrap_read(contents)).map_err(failed)?;
    }
    let gzip = archive.into_inner().map_err(failed)?;
    gzip.finish().and_then(|mut file| file.flush()).map_err(failed)?;
    bar.finish_and_clear();
    files::persist(file, out)
}

/// Lists a folder and everything below it, sorted, with the names in the archive.
fn list(path: &Path, name: &Path, paths: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    paths.push((path.to_owned(), name.to_owned()));
    if !path.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| files::failed(path, &error))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(|error| files::failed(path, &error))?.file_name());
    }
    names.sort();
    for own in names {
        list(&path.join(&own), &name.join(&own), paths)?;
    }
    Ok(())
}

/// Makes the header and the contents of a file or folder, without time and owner, readable for everybody.
fn entry(path: &Path) -> Result<(Header, Box<dyn Read>)> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    if path.is_dir() {
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        return Ok((header, Box::new(std::io::empty())));
    }
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(files::length(path)?);
    Ok((header, Box::new(BufReader::with_capacity(1 << 20, files::open(path)?))))
}

fn append(
    archive: &mut Builder<impl Write>,
    mut header: Header,
    name: &Path,
    contents: impl Read,
) -> std::io::Result<()> {
    archive.append_data(&mut header, name, contents)
}
