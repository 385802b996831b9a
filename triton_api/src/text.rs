//! Strings across the boundary.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};

/// A C string with the text of `text`. A NUL would end it early and becomes U+FFFD.
pub(crate) fn to_c(text: &str) -> CString {
    let text: Cow<'_, str> = if text.contains('\0') {
        text.replace('\0', "\u{FFFD}").into()
    } else {
        text.into()
    };
    CString::new(text.into_owned()).unwrap_or_default()
}

/// The text behind `pointer`; `None` if it is null.
///
/// # Safety
///
/// `pointer` is null or a C string that lives and stays as it is for `'a`.
pub(crate) unsafe fn from_c<'a>(pointer: *const c_char) -> Option<Cow<'a, str>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy())
}

/// As [`from_c`], without a copy: `None` also if the bytes are not UTF-8.
///
/// # Safety
///
/// As for [`from_c`].
pub(crate) unsafe fn borrow_c<'a>(pointer: *const c_char) -> Option<&'a str> {
    // SAFETY: the caller vouches for the pointer.
    match unsafe { from_c(pointer) }? {
        Cow::Borrowed(text) => Some(text),
        Cow::Owned(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_does_not_cut_the_text() {
        assert_eq!(to_c("a\0b").to_bytes(), "a\u{FFFD}b".as_bytes());
        assert_eq!(to_c("plain").to_bytes(), b"plain");
    }

    #[test]
    fn null_and_bytes_that_are_not_utf8() {
        // SAFETY: null, and literals.
        unsafe {
            assert_eq!(from_c(std::ptr::null()), None);
            assert_eq!(borrow_c(c"x".as_ptr()), Some("x"));
            assert_eq!(borrow_c(c"\xff".as_ptr()), None);
            assert_eq!(from_c(c"\xff".as_ptr()).as_deref(), Some("\u{FFFD}"));
        }
    }
}
