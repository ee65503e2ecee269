//! The few fields of CRI messages that we look at; the numbers are the protocol's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use super::keychain::KeptLogin;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
    #[prost(string, tag = "3")]
    pub(super) auth: String,
    #[prost(string, tag = "4")]
    pub(super) server_address: String,
    #[prost(string, tag = "5")]
    pub(super) identity_token: String,
    #[prost(string, tag = "6")]
    pub(super) registry_token: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(super) auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullImageResponse {
    #[prost(string, tag = "1")]
    pub(super) image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RemoveImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
}

/// The single message of a body in gRPC's framing, unless it is compressed: nobody does that here.
pub(super) fn payload(body: &[u8]) -> Option<&[u8]> {
    let (&flag, rest) = body.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    rest.get(..len).filter(|_| flag == 0)
}

/// An image that is to be pulled, and the credentials that came along.
pub(super) fn pull(payload: &[u8]) -> Option<(String, Option<KeptLogin>)> {
    let request = PullImageRequest::decode(payload).ok()?;
    let image = request.image?.image;
    Some((image, request.auth.and_then(login)))
}

/// An image that is to be removed, by its name or its id.
pub(super) fn removed(payload: &[u8]) -> Option<String> {
    Some(RemoveImageRequest::decode(payload).ok()?.image?.image)
}

/// Id of an image that was pulled.
pub(super) fn pulled(payload: &[u8]) -> Option<String> {
    let id = PullImageResponse::decode(payload).ok()?.image_ref;
    Some(id).filter(|id| !id.is_empty())
}

/// What containerd makes of them, in its order.
fn login(auth: AuthConfig) -> Option<KeptLogin> {
    let AuthConfig { username, password, auth, server_address, identity_token, registry_token } =
        auth;
    let server = Some(server_address).filter(|server| !server.is_empty());
    let kept = |username: &str, secret: &str, kind: &str| KeptLogin {
        server: server.clone(),
        username: username.to_owned(),
        secret: secret.to_owned(),
        kind: kind.to_owned(),
    };
    if !username.is_empty() {
        return Some(kept(&username, &password, KeptLogin::PASSWORD));
    }
    if !identity_token.is_empty() {
        return Some(kept("", &identity_token, KeptLogin::IDENTITY));
    }
    if !auth.is_empty() {
        let bytes = STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        return Some(kept(username, password.trim_end_matches('\0'), KeptLogin::PASSWORD));
    }
    (!registry_token.is_empty()).then(|| kept("", &registry_token, KeptLogin::REGISTRY))
}
