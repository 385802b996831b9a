//! Tests of files of textual inversion, good and hostile, with the tokenizer of a tiny checkpoint.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tempfile::{TempDir, tempdir};

use super::*;
use crate::adapters::Embeddings;
use diffusion_core::ErrorKind;

fn tokenizer() -> Arc<ClipTokenizer> {
    let folder = test_support::checkpoint("sd1").join("tokenizer");
    Arc::new(ClipTokenizer::open(&folder, 77, 814).unwrap())
}

fn pool(folder: &Path) -> EmbeddingPool {
    EmbeddingPool::new(folder.to_path_buf(), None, tokenizer(), (4, Kind::Float))
}

/// A file of tensors of one value each.
fn file(tensors: &[(&str, &[usize], f32)]) -> Vec<u8> {
    let bytes = |(_, shape, value): &(&str, &[usize], f32)| value.to_le_bytes().repeat(shape.iter().product());
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let new = folder.join("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, folder.join(format!("{name}.safetensors"))).unwrap();
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempdir().unwrap();
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    folder
}

/// Returns the ids of a text.
fn ids(embeddings: &Embeddings, text: &str) -> Result<Vec<i64>> {
    embeddings.encode_unpadded(&tokenizer(), &embeddings.convert(text)?)
}

#[test]
fn damaged_and_unfit_files_are_refused() {
    let whole = file(&[("emb_params", &[2, 4], 1.0)]);
    let integers = {
        let ones = [1u8; 8 * 4];
        let view = TensorView::new(Dtype::I64, vec![4], &ones).unwrap();
        safetensors::serialize([("emb_params", view)], None).unwrap()
    };
    let one = |shape: &[usize], value: f32| file(&[("emb_params", shape, value)]);
    for (bytes, expected) in [
        (b"rubbish".to_vec(), "not a whole safetensors file"),
        (b"\x80\x02}q\x00. a pickle".to_vec(), "not a whole safetensors file"),
        (Vec::new(), "not a whole safetensors file"),
        (whole[..whole.len() - 1].to_vec(), "not a whole safetensors file"),
        (file(&[]), "an embedding has 1 tensor, this file has 0"),
        (
            file(&[("emb_params", &[2, 4], 1.0), ("name", &[1], 1.0)]),
            "an embedding has 1 tensor, this file has 2",
        ),
        (
            file(&[("clip_l", &[2, 4], 1.0), ("clip_g", &[2, 8], 1.0)]),
            "the embedding is for Stable Diffusion XL (clip_l, clip_g)",
        ),
        (one(&[2, 5], 1.0), "a vector has 5 numbers, the text encoder needs 4"),
        (one(&[8], 1.0), "a vector has 8 numbers, the text encoder needs 4"),
        (
            one(&[], 1.0),
            "the tensor has 0 dimensions, expected [vectors, size] or [size]",
        ),
        (one(&[1, 1, 4], 1.0), "the tensor has 3 dimensions, expected"),
        (one(&[0, 4], 1.0), "the tensor has 0 vectors, expected 1 to 75"),
        (one(&[76, 4], 1.0), "the tensor has 76 vectors, expected 1 to 75"),
        (one(&[2, 4], f32::NAN), "has numbers that are not finite"),
        (one(&[2, 4], f32::INFINITY), "has numbers that are not finite"),
        (integers, "the tensor has dtype I64, expected float32"),
    ] {
        let folder = folder(&[("my word", &bytes), ("good", &whole)]);
        let embeddings = pool(folder.path()).get();
        assert!(embeddings.words().eq([("good", 2)]), "{expected}");
        let path = folder.path().join("my word.safetensors").display().to_string();
        let [warning] = embeddings.warnings() else {
            unreachable!("{:?}", embeddings.warnings())
        };
        assert!(warning.starts_with(&path) && warning.contains(expected), "{warning}");
        let error = ids(&embeddings, "a cat, my word").unwrap_err();
        assert_eq!(error.to_string(), *warning);
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Unsupported),
            "{error}"
        );
        let text = "a cat, my other word";
        assert_eq!(ids(&embeddings, text), ids(&Embeddings::default(), text));
        assert_eq!(ids(&embeddings, "good").unwrap().len(), 2);
    }
}

#[test]
fn words_are_found_in_both_layouts() {
    let folder = folder(&[
        ("a", &file(&[("<toy>", &[4], 0.25)])),
        ("b", &file(&[("<Two>", &[2, 4], 0.5)])),
        ("webui", &file(&[("emb_params", &[3, 4], 1.0)])),
        (".hidden", b"rubbish"),
    ]);
    fs::write(folder.path().join("notes.txt"), b"rubbish").unwrap();
    let embeddings = pool(folder.path()).get();
    assert!(embeddings.words().eq([("<Two>", 2), ("<toy>", 1), ("webui", 3)]));
    assert_eq!(embeddings.warnings(), [] as [&str; 0]);
    let found = ids(&embeddings, "a <toy>, <Two>webui").unwrap();
    let plain = ids(&Embeddings::default(), "a,").unwrap();
    assert_eq!([found[0], found[2]], [plain[0], plain[1]]);
    let values: Vec<Option<f32>> = found.iter().map(|&id| Some(embeddings.vector(id)?[3])).collect();
    let expected = [
        None,
        Some(0.25),
        None,
        Some(0.5),
        Some(0.5),
        Some(1.0),
        Some(1.0),
        Some(1.0),
    ];
    assert_eq!(values, expected);
    assert_eq!(found.len(), 8);
    assert_eq!(embeddings.vector(found[7] + 1), None);
    assert_eq!(embeddings.vector(-1), None);
    // Upper and lower case are two words, as in diffusers.
    let other = ids(&embeddings, "<two> WEBUI").unwrap();
    assert!(other.iter().all(|&id| embeddings.vector(id).is_none()));
}

#[test]
fn file_counts_when_it_is_added_replaced_and_removed() {
    let folder = tempdir().unwrap();
    let embeddings = folder.path().join("embeddings");
    let pool = pool(&embeddings);
    assert!(
        pool.loaded().is_some_and(|none| none.words().count() == 0),
        "the folder is not there"
    );
    fs::create_dir(&embeddings).unwrap();
    write(&embeddings, "word", &file(&[("emb_params", &[4], 1.0)]));
    assert!(pool.loaded().is_none());
    let first = pool.get();
    assert!(Arc::ptr_eq(&first, &pool.loaded().unwrap()));
    let before = ids(&first, "word").unwrap();
    write(&embeddings, "other", &file(&[("emb_params", &[4], 3.0)]));
    assert_eq!(
        ids(&pool.get(), "word").unwrap(),
        before,
        "an unchanged file is not loaded again"
    );
    write(&embeddings, "word", &file(&[("emb_params", &[4], 2.0)]));
    assert!(pool.loaded().is_none());
    let second = pool.get();
    let after = ids(&second, "word").unwrap();
    assert_ne!(before, after);
    assert_eq!(second.vector(after[0]).unwrap(), [2.0; 4]);
    assert_eq!(second.vector(before[0]), None);
    assert_eq!(
        first.vector(before[0]).unwrap(),
        [1.0; 4],
        "a request keeps what it has"
    );
    // In place too, though half of it may be read then.
    fs::write(embeddings.join("word.safetensors"), b"rubbish").unwrap();
    assert!(ids(&pool.get(), "word").is_err());
    fs::remove_file(embeddings.join("word.safetensors")).unwrap();
    assert!(ids(&pool.get(), "word").unwrap().iter().all(|&id| id < 814));
}

#[test]
fn word_of_the_vocabulary_keeps_its_meaning() {
    let good = file(&[("emb_params", &[4], 1.0)]);
    let folder = folder(&[("in", &good), ("<|endoftext|>", b""), ("a", b"rubbish")]);
    let pool = pool(folder.path());
    let embeddings = pool.get();
    assert_eq!(embeddings.words().count(), 0);
    assert_eq!(embeddings.warnings().len(), 3, "{:?}", embeddings.warnings());
    let vocabulary = |warning: &&String| warning.contains("is in the vocabulary of the tokenizer; rename it");
    assert_eq!(embeddings.warnings().iter().filter(vocabulary).count(), 1);
    for text in ["a cat in", "inside", "<|endoftext|>"] {
        assert_eq!(ids(&embeddings, text), ids(&Embeddings::default(), text));
    }
    assert_eq!(pool.new_warnings().len(), 3);
    assert_eq!(pool.new_warnings(), [] as [&str; 0], "each is reported once");
}

#[test]
fn files_of_one_word_are_refused() {
    let two = |word: &str| file(&[(word, &[2, 4], 1.0)]);
    let folder = folder(&[
        ("a", &two("<x>")),
        ("b", &two("<x>")),
        ("c", &two("<y>")),
        // A token of <y>, and the one after it.
        ("d", &file(&[("<y>_1", &[4], 1.0)])),
        ("e", &file(&[("<y>_2", &[4], 1.0)])),
        // <z> would go on with it.
        ("f", &file(&[("<z>_1", &[4], 1.0)])),
        ("g", &file(&[("<z>", &[4], 1.0)])),
        // The word of a broken file may be that of a good one.
        ("<y>", b"rubbish"),
    ]);
    let embeddings = pool(folder.path()).get();
    assert!(embeddings.words().eq([("<x>", 2), ("<y>", 2), ("<z>_1", 1)]));
    assert_eq!(embeddings.warnings().len(), 5, "{:?}", embeddings.warnings());
    let other = |name: &str| folder.path().join(format!("{name}.safetensors")).display().to_string();
    for (text, file, refused_for) in [("<x>", "b", "a"), ("<y>_2", "e", "c"), ("<z>", "g", "f")] {
        let error = ids(&embeddings, text).unwrap_err().to_string();
        assert!(
            error.starts_with(&other(file)) && error.contains(&other(refused_for)),
            "{error}"
        );
    }
    assert_eq!(ids(&embeddings, "<y>").unwrap().len(), 2, "other files do not harm it");
    assert_eq!(ids(&embeddings, "<y>_1").unwrap().len(), 1);
}

#[test]
fn numbers_must_be_finite_in_the_dtype_of_the_text_encoder() {
    let folder = folder(&[("word", &file(&[("emb_params", &[4], 70_000.0)]))]);
    assert_eq!(pool(folder.path()).get().words().count(), 1);
    let half = EmbeddingPool::new(folder.path().to_path_buf(), None, tokenizer(), (4, Kind::Half));
    assert!(half.get().warnings()[0].contains("not finite"));
}

#[test]
fn link_out_of_the_root_is_refused() {
    let (outside, root) = (tempdir().unwrap(), tempdir().unwrap());
    let good = file(&[("emb_params", &[4], 1.0)]);
    fs::write(outside.path().join("word"), &good).unwrap();
    let embeddings = root.path().join("embeddings");
    fs::create_dir(&embeddings).unwrap();
    std::os::unix::fs::symlink(outside.path().join("word"), embeddings.join("word.safetensors")).unwrap();
    std::os::unix::fs::symlink("nowhere", embeddings.join("lostword.safetensors")).unwrap();
    let free = pool(&embeddings).get();
    assert!(free.words().eq([("word", 1)]));
    let error = ids(&free, "lostword").unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::InvalidArgument,
        "a client asked for it: {error}"
    );
    let bounded = EmbeddingPool::new(
        embeddings,
        Some(root.path().to_path_buf()),
        tokenizer(),
        (4, Kind::Float),
    );
    let error = ids(&bounded.get(), "word").unwrap_err();
    assert!(error.to_string().contains("outside of the version folder"), "{error}");
}

#[test]
fn files_beyond_the_limit_are_not_read() {
    let folder = tempdir().unwrap();
    let good = file(&[("emb_params", &[4], 1.0)]);
    for number in 0..MAX_FILES + 2 {
        fs::write(folder.path().join(format!("<{number:04}>.safetensors")), &good).unwrap();
    }
    let pool = pool(folder.path());
    let embeddings = pool.get();
    assert_eq!(embeddings.words().count(), MAX_FILES);
    let error = ids(&embeddings, "<1000>").unwrap_err();
    assert!(error.to_string().contains("more than 1000 embeddings"), "{error}");
    assert!(pool.loaded().is_some());
}
