//! Manifests, tags and referrers.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, LINK, LOCATION};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use spanfs_layer::Digest;

use crate::answer::{
    Answer, DOCKER_CONTENT_DIGEST, bare, error, header, json as json_answer, not_found, with_body,
};
use crate::body::Body;
use crate::route::Reference;
use crate::serve::{Request, Shared, body, header_text, lock, query};
use crate::store::{Manifest, Outline, Store};

/// Largest manifest taken: what the specification asks registries to allow.
const MANIFEST_LEN_MAX: usize = 4 << 20;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(crate) async fn serve(
    shared: &Shared,
    request: Request,
    name: &str,
    reference: &Reference,
) -> Answer {
    match *request.method() {
        Method::GET | Method::HEAD => get(shared, name, reference),
        Method::PUT => put(shared, request, name, reference).await,
        Method::DELETE => delete(shared, name, reference),
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not a method of manifests"),
    }
}

fn find(store: &Store, name: &str, reference: &Reference) -> Option<(Digest, Manifest)> {
    let repository = store.repositories.get(name)?;
    let digest = match reference {
        Reference::Tag(tag) => *repository.tags.get(tag)?,
        Reference::Digest(digest) => *digest,
    };
    Some((digest, repository.manifests.get(&digest)?.clone()))
}

fn get(shared: &Shared, name: &str, reference: &Reference) -> Answer {
    let Some((digest, manifest)) = find(&lock(&shared.store), name, reference) else {
        return not_found("MANIFEST_UNKNOWN", format!("manifest {reference:?} of {name}"));
    };
    let answer = with_body(StatusCode::OK, Body::text(manifest.bytes));
    let answer = header(answer, CONTENT_TYPE, manifest.media_type);
    header(answer, DOCKER_CONTENT_DIGEST, digest)
}

async fn put(shared: &Shared, request: Request, name: &str, reference: &Reference) -> Answer {
    let content_type = header_text(&request, CONTENT_TYPE);
    let bytes = match body(request, MANIFEST_LEN_MAX).await {
        Ok(bytes) => bytes,
        Err(answer) => return answer,
    };
    let invalid = |message: &str| error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let outline: Outline = match serde_json::from_slice(&bytes) {
        Ok(outline) => outline,
        Err(reason) => return invalid(&format!("not a manifest: {reason}")),
    };
    let media_type = match (content_type, outline.media_type.clone()) {
        (Some(header), Some(field)) if header != field => {
            return invalid(&format!("Content-Type {header}, but mediaType {field}"));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => return invalid("neither Content-Type nor mediaType"),
    };
    if let Reference::Digest(digest) = reference
        && *digest != digest_like(digest, &bytes)
    {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "content has another digest");
    }
    let mut store = lock(&shared.store);
    if let Some(missing) = missing(&store, name, &outline) {
        let message = format!("{missing} is not in {name}");
        return error(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", &message);
    }
    let tag = match reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(_) => None,
    };
    let digest = match store.put_manifest(name, tag, media_type, bytes) {
        Ok(digest) => digest,
        Err(reason) => return invalid(&reason.to_string()),
    };
    let answer =
        header(bare(StatusCode::CREATED), LOCATION, format!("/v2/{name}/manifests/{digest}"));
    let answer = header(answer, DOCKER_CONTENT_DIGEST, digest);
    match outline.subject {
        Some(subject) if shared.referrers() => header(answer, OCI_SUBJECT, subject.digest),
        _ => answer,
    }
}

fn digest_like(digest: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = spanfs_layer::Hasher::new(digest.algorithm());
    hasher.update(bytes);
    hasher.finish()
}

/// Something that the manifest needs and the repository has not. A subject may come later.
fn missing(store: &Store, name: &str, outline: &Outline) -> Option<Digest> {
    let needed = outline.config.iter().chain(&outline.layers).chain(&outline.manifests);
    needed.map(|descriptor| descriptor.digest).find(|digest| store.blob(name, digest).is_none())
}

fn delete(shared: &Shared, name: &str, reference: &Reference) -> Answer {
    let mut store = lock(&shared.store);
    if find(&store, name, reference).is_none() {
        return not_found("MANIFEST_UNKNOWN", format!("manifest {reference:?} of {name}"));
    }
    let repository = store.repository(name);
    match reference {
        Reference::Tag(tag) => {
            repository.tags.remove(tag);
        }
        Reference::Digest(digest) => {
            repository.manifests.remove(digest);
            repository.tags.retain(|_, tagged| tagged != digest);
        }
    }
    bare(StatusCode::ACCEPTED)
}

/// `GET referrers/DIGEST?artifactType=`: an index of what names that digest as its subject.
pub(crate) fn referrers(
    shared: &Shared,
    request: &Request,
    name: &str,
    subject: &Digest,
) -> Answer {
    if !shared.referrers() {
        return not_found("UNSUPPORTED", "the referrers API");
    }
    let wanted = query(request, "artifactType");
    let store = lock(&shared.store);
    let manifests = store.repositories.get(name).into_iter().flat_map(|found| &found.manifests);
    let descriptors: Vec<Value> = manifests
        .filter(|(_, manifest)| {
            manifest.outline.subject.as_ref().is_some_and(|found| found.digest == *subject)
        })
        .map(|(digest, manifest)| (digest, manifest, artifact_type(&manifest.outline)))
        .filter(|(_, _, found)| wanted.is_none() || *found == wanted.as_deref())
        .map(|(digest, manifest, artifact_type)| descriptor(digest, manifest, artifact_type))
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": descriptors });
    let answer = json_answer(StatusCode::OK, INDEX_TYPE, index.to_string());
    match wanted {
        Some(_) => header(answer, OCI_FILTERS_APPLIED, "artifactType"),
        None => answer,
    }
}

/// A manifest's artifactType; where it has none, its config's media type stands for it.
fn artifact_type(outline: &Outline) -> Option<&str> {
    let config = outline.config.as_ref().map(|config| config.media_type.as_str());
    outline.artifact_type.as_deref().or(config)
}

fn descriptor(digest: &Digest, manifest: &Manifest, artifact_type: Option<&str>) -> Value {
    let mut descriptor = json!({
        "mediaType": manifest.media_type,
        "digest": digest,
        "size": manifest.bytes.len(),
    });
    if let Some(artifact_type) = artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    if let Some(annotations) = &manifest.outline.annotations {
        descriptor["annotations"] = json!(annotations);
    }
    descriptor
}

/// `GET tags/list?n=&last=`
pub(crate) fn tags(shared: &Shared, request: &Request, name: &str) -> Answer {
    let store = lock(&shared.store);
    let Some(repository) = store.repositories.get(name) else {
        return not_found("NAME_UNKNOWN", name);
    };
    let last = query(request, "last");
    let limit = query(request, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let mut rest = repository.tags.keys().filter(|tag| Some(*tag) > last.as_ref());
    let page: Vec<&String> = rest.by_ref().take(limit).collect();
    let text = json!({ "name": name, "tags": page }).to_string();
    let answer = with_body(StatusCode::OK, Body::text(Bytes::from(text)));
    let answer = header(answer, CONTENT_TYPE, "application/json");
    match (rest.next(), page.last()) {
        (Some(_), Some(last)) => {
            let next = format!("</v2/{name}/tags/list?n={limit}&last={last}>; rel=\"next\"");
            header(answer, LINK, next)
        }
        _ => answer,
    }
}
