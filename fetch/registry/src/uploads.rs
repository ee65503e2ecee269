//! Uploads of blobs: at once, in chunks, or mounted from another repository.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use spanfs_layer::{Digest, Hasher};

use crate::answer::{Answer, DOCKER_CONTENT_DIGEST, bare, error, header, not_found};
use crate::range::chunk_start;
use crate::serve::{Request, Shared, header_text, lock, query};
use crate::store::Content;

/// Uploads under way at once.
const UPLOADS_MAX: usize = 1024;
/// Bytes of an upload that is kept in memory.
const MEMORY_LEN_MAX: u64 = 2 << 30;
/// Bytes of an upload that goes into a directory.
const FILE_LEN_MAX: u64 = 64 << 30;
const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

#[derive(Debug, Default)]
pub(crate) struct Uploads {
    count: u64,
    open: BTreeMap<u64, Upload>,
}

#[derive(Debug)]
struct Upload {
    repository: String,
    sink: Sink,
    len: u64,
}

#[derive(Debug)]
enum Sink {
    Memory(Vec<u8>),
    /// Written by the runtime's own thread: it goes to the page cache, and nobody measures pushes.
    File(File, PathBuf),
}

impl Upload {
    fn new(shared: &Shared, repository: &str, id: u64) -> io::Result<Self> {
        let directory = lock(&shared.store).directory().map(|root| root.join("uploads"));
        let sink = match directory {
            Some(directory) => {
                std::fs::create_dir_all(&directory)?;
                let path = directory.join(id.to_string());
                let options = File::options().read(true).write(true).create_new(true).clone();
                Sink::File(options.open(&path)?, path)
            }
            None => Sink::Memory(Vec::new()),
        };
        Ok(Self { repository: repository.to_owned(), sink, len: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (limit, result) = match &mut self.sink {
            Sink::Memory(memory) => {
                memory.extend_from_slice(bytes);
                (MEMORY_LEN_MAX, Ok(()))
            }
            Sink::File(file, _) => (FILE_LEN_MAX, file.write_all(bytes)),
        };
        self.len += bytes.len() as u64;
        if self.len > limit {
            return Err(io::Error::other(format!("upload is longer than {limit} bytes")));
        }
        result
    }

    /// The content, if it has the digest that the client promised.
    fn finish(self, shared: &Shared, digest: &Digest) -> io::Result<Option<Content>> {
        let mut hasher = Hasher::new(digest.algorithm());
        match self.sink {
            Sink::Memory(bytes) => {
                hasher.update(&bytes);
                let sound = hasher.finish() == *digest;
                Ok(sound.then(|| Content::Memory(Bytes::from(bytes))))
            }
            Sink::File(mut file, path) => {
                io::Seek::rewind(&mut file)?;
                hash(&mut file, &mut hasher)?;
                let target = lock(&shared.store).path_of(digest);
                let target = target.filter(|_| hasher.finish() == *digest);
                let Some(target) = target else {
                    std::fs::remove_file(path)?;
                    return Ok(None);
                };
                if let Some(parent) = target.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                std::fs::rename(path, &target)?;
                Content::open(&target).map(Some)
            }
        }
    }

    fn discard(self) {
        if let Sink::File(_, path) = self.sink {
            // The directory is the caller's and goes when he likes; a stray file harms nobody.
            let _stray = std::fs::remove_file(path);
        }
    }
}

fn hash(file: &mut File, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(file, &mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn failed(reason: &io::Error) -> Answer {
    error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", &reason.to_string())
}

/// POST: `?mount=&from=`, `?digest=` with the content, or a new upload.
pub(crate) async fn begin(shared: &Arc<Shared>, request: Request, name: &str) -> Answer {
    if let (Some(digest), Some(from)) = (query(&request, "mount"), query(&request, "from"))
        && let Ok(digest) = digest.parse()
        && lock(&shared.store).link_blob(&from, name, digest)
    {
        return created(name, &digest);
    }
    let id = {
        let mut uploads = lock(&shared.uploads);
        if uploads.open.len() >= UPLOADS_MAX {
            let message = "too many uploads are open";
            return error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message);
        }
        uploads.count += 1;
        uploads.count
    };
    let upload = match Upload::new(shared, name, id) {
        Ok(upload) => upload,
        Err(reason) => return failed(&reason),
    };
    match query(&request, "digest") {
        Some(digest) => receive(shared, request, upload, id, Some(digest)).await,
        None => {
            lock(&shared.uploads).open.insert(id, upload);
            state(StatusCode::ACCEPTED, name, id, 0)
        }
    }
}

/// PATCH, PUT, GET and DELETE of an upload under way.
pub(crate) async fn go_on(shared: &Arc<Shared>, request: Request, name: &str, id: u64) -> Answer {
    let method = request.method().clone();
    let found = lock(&shared.uploads).open.get(&id).map(|it| (it.repository == name, it.len));
    let Some((true, len)) = found else {
        return not_found("BLOB_UPLOAD_UNKNOWN", format!("upload {id} of {name}"));
    };
    if method == Method::GET {
        return state(StatusCode::NO_CONTENT, name, id, len);
    }
    let start = header_text(&request, CONTENT_RANGE).and_then(|range| chunk_start(&range));
    if start.is_some_and(|start| start != len) {
        return state(StatusCode::RANGE_NOT_SATISFIABLE, name, id, len);
    }
    // While its bytes arrive nobody else can reach it.
    let Some(upload) = lock(&shared.uploads).open.remove(&id) else {
        return not_found("BLOB_UPLOAD_UNKNOWN", format!("upload {id} of {name}"));
    };
    match method {
        Method::PATCH => receive(shared, request, upload, id, None).await,
        Method::PUT => match query(&request, "digest") {
            Some(digest) => receive(shared, request, upload, id, Some(digest)).await,
            None => {
                upload.discard();
                error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "PUT needs ?digest=")
            }
        },
        _ => {
            upload.discard();
            bare(StatusCode::NO_CONTENT)
        }
    }
}

/// Append the request's body; with a digest, close the upload.
async fn receive(
    shared: &Shared,
    request: Request,
    mut upload: Upload,
    id: u64,
    digest: Option<String>,
) -> Answer {
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let appended = match frame {
            Ok(frame) => frame.into_data().map_or(Ok(()), |data| upload.append(&data)),
            Err(reason) => Err(io::Error::other(reason)),
        };
        if let Err(reason) = appended {
            upload.discard();
            return failed(&reason);
        }
    }
    let name = upload.repository.clone();
    let Some(digest) = digest else {
        let len = upload.len;
        lock(&shared.uploads).open.insert(id, upload);
        return state(StatusCode::ACCEPTED, &name, id, len);
    };
    let Ok(digest) = digest.parse::<Digest>() else {
        upload.discard();
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not a digest");
    };
    match upload.finish(shared, &digest) {
        Ok(Some(content)) => {
            lock(&shared.store).put_blob(&name, digest, content);
            created(&name, &digest)
        }
        Ok(None) => {
            let message = format!("content has another digest than {digest}");
            error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &message)
        }
        Err(reason) => failed(&reason),
    }
}

fn created(name: &str, digest: &Digest) -> Answer {
    let location = format!("/v2/{name}/blobs/{digest}");
    let answer = header(bare(StatusCode::CREATED), LOCATION, location);
    header(answer, DOCKER_CONTENT_DIGEST, digest)
}

fn state(status: StatusCode, name: &str, id: u64, len: u64) -> Answer {
    let answer = header(bare(status), LOCATION, format!("/v2/{name}/blobs/uploads/{id}"));
    let answer = header(answer, RANGE, format!("0-{}", len.saturating_sub(1)));
    header(answer, DOCKER_UPLOAD_UUID, id)
}
