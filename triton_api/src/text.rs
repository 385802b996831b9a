//! Conversion of strings from and to C.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};

/// Converts to a C string. A NUL becomes U+FFFD.
pub(crate) fn to_c(text: &str) -> CString {
    let text: Cow<'_, str> = if text.contains('\0') {
        text.replace('\0', "\u{FFFD}").into()
    } else {
        text.into()
    };
    CString::new(text.into_owned()).unwrap_or_default()
}

/// Converts a C string, with U+FFFD for invalid UTF-8; `None` if the pointer is null.
///
/// # Safety
///
/// `pointer` is null or a C string that lives and does not change during `'a`.
pub(crate) unsafe fn from_c<'a>(pointer: *const c_char) -> Option<Cow<'a, str>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller guarantees the rest.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy())
}

/// Borrows a C string; `None` if the pointer is null or the bytes are not UTF-8.
///
/// # Safety
///
/// The conditions of [`from_c`].
pub(crate) unsafe fn borrow_c<'a>(pointer: *const c_char) -> Option<&'a str> {
    // SAFETY: the caller guarantees the pointer.
    match unsafe { from_c(pointer) }? {
        Cow::Borrowed(text) => Some(text),
        Cow::Owned(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_c_nul_does_not_truncate() {
        assert_eq!(to_c("a\0b").to_bytes(), "a\u{FFFD}b".as_bytes());
        assert_eq!(to_c("plain").to_bytes(), b"plain");
    }

    #[test]
    fn from_c_null_and_invalid_utf8_are_handled() {
        // SAFETY: null and literals.
        unsafe {
            assert_eq!(from_c(std::ptr::null()), None);
            assert_eq!(borrow_c(c"x".as_ptr()), Some("x"));
            assert_eq!(borrow_c(c"\xff".as_ptr()), None);
            assert_eq!(from_c(c"\xff".as_ptr()).as_deref(), Some("\u{FFFD}"));
        }
    }
}
