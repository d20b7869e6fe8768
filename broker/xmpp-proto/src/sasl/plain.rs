//! PLAIN: the password itself (RFC 4616), only ever under TLS.

use zeroize::Zeroizing;

use super::SaslFailure;

/// A PLAIN message.
pub struct Plain {
    /// Whom the client wants to act as; empty means the user.
    pub authzid: String,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Zeroizing<String>,
}

impl Plain {
    /// Reads `[authzid] NUL authcid NUL passwd`, RFC 4616 §2.
    ///
    /// # Errors
    /// [`SaslFailure::MalformedRequest`].
    pub fn parse(message: &[u8]) -> Result<Plain, SaslFailure> {
        let text = std::str::from_utf8(message).map_err(|_| SaslFailure::MalformedRequest)?;
        let mut parts = text.split('\0');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(authzid), Some(user), Some(password), None) if !user.is_empty() && !password.is_empty() => {
                Ok(Plain { authzid: authzid.into(), user: user.into(), password: Zeroizing::new(password.into()) })
            }
            _ => Err(SaslFailure::MalformedRequest),
        }
    }
}
