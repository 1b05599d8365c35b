//! Names of objects as the kernel takes them.

use std::ffi::{CString, c_char};

/// A name without NUL and of at most [`Name::MAX`] octets, so that any message with a few names fits its
/// buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(CString);

impl Name {
    /// `NFT_NAME_MAXLEN` without the NUL.
    pub const MAX: usize = 255;

    /// The name, or what is wrong with it.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() || name.len() > Self::MAX {
            return Err("a name must be of 1 to 255 octets");
        }
        CString::new(name)
            .map(Self)
            .map_err(|_| "a name must not have a NUL")
    }

    /// As a rule's comment, of the form in which `nft` shows it: type, length with the NUL, text.
    pub fn as_user_data(&self) -> Vec<u8> {
        const COMMENT: u8 = nftnl_sys::NFTNL_UDATA_RULE_COMMENT as u8;
        let text = self.0.as_bytes_with_nul();
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        [&[COMMENT, length], text].concat()
    }

    /// For calls into C; live as long as the name.
    pub(super) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr()
    }
}
