//! The bytes of an image: upload, stage, download.

use super::files::{self, path, staged};
use super::rest::{aim, cx, id};
use super::{Content, Image, Status, Step, get, room, step};
use crate::App;
use api::reply::ByteStream;
use api::{Call, Reply, Route};
use base::{Error, Id, Kind, Result};
use bytes::Bytes;
use http::StatusCode;
use std::io::SeekFrom;
use std::ops::Range;
use std::sync::Arc;
use store::Cause;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

pub fn routes() -> Vec<Route<App>> {
    const FILE: &str = "/v2/images/{image_id}/file";
    vec![
        api::put(FILE, "upload_image", |a, c| upload(a, c, Way::Save)).target(aim).streamed(),
        api::put("/v2/images/{image_id}/stage", "modify_image", |a, c| upload(a, c, Way::Stage))
            .target(aim)
            .streamed(),
        api::get(FILE, "download_image", download).target(aim),
    ]
}

/// Where uploaded bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Save,
    Stage,
}

/// Bytes of a download's chunk.
const CHUNK: usize = 256 << 10;

/// The upload runs on when its client goes away: to its end, or to being queued again.
async fn upload(app: App, call: Call, way: Way) -> Result<Reply> {
    let header = |name: &str| call.headers.get(name).and_then(|v| v.to_str().ok());
    if header("content-type").is_none_or(|t| !t.starts_with("application/octet-stream")) {
        return Err(Error::media_type("Image data is application/octet-stream."));
    }
    let length: Option<u64> = header("content-length").and_then(|l| l.parse().ok());
    let id = id(&call)?;
    let image = get(&app.cell.read(), &cx(&call), id)?;
    let max = app.settings.image_bytes_max.min(room(&app.cell.read(), image.owner));
    if length.is_some_and(|l| l > max) {
        return Err(Error::too_large(format!("The image is larger than the {max} bytes that it may have.")));
    }
    let stream = call.take_stream().ok_or_else(|| Error::internal("an upload has no stream"))?;
    let begin = if way == Way::Save { Step::Save } else { Step::Stage };
    let busy = app.uploads.mark(id);
    let image = call.write(&app.cell, move |tx| step(tx, id, &begin)).await?;
    let cause = call.cause();
    let work = tokio::spawn(store::carried(async move {
        let _busy = busy;
        receive(&app, cause, &image, stream, way, max).await
    }));
    work.await.map_err(|e| Error::internal("an upload panicked").because(e))??;
    Ok(Reply::no_content())
}

async fn receive(
    app: &App,
    cause: Cause,
    image: &Image,
    stream: ByteStream,
    way: Way,
    max: u64,
) -> Result<()> {
    let id = image.id;
    let saved = match way {
        Way::Save => {
            let format = image.fields.disk_format;
            files::save(stream, &path(&app.settings, id), format, max).await.map(Step::Saved)
        }
        Way::Stage => files::save(stream, &staged(&app.settings, id), None, max).await.map(|_| Step::Staged),
    };
    end(app, cause, id, saved).await
}

/// Tells the record how an upload ended. Of an image that is gone meanwhile, or queued again, the bytes go too; where
/// the record says otherwise, or is another process's to write, they are not ours to remove.
pub(super) async fn end(app: &App, cause: Cause, id: Id<Image>, saved: Result<Step>) -> Result<()> {
    let outcome = match saved {
        Ok(done) => app.cell.write(cause.clone(), move |tx| step(tx, id, &done).map(drop)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        let back = move |tx: &mut store::Tx| match step(tx, id, &Step::Lost) {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            Ok(_) | Err(_) => Ok(()),
        };
        app.cell.write(cause, back).await?;
        files::remove(&app.settings, id).await;
        return Err(error);
    }
    Ok(())
}

/// What a download is of: bytes, or nothing yet.
fn content(image: &Image, call: &Call) -> Result<Option<Content>> {
    match image.status {
        Status::Deactivated if !call.cx.has_role("admin") => Err(Error::forbidden(
            "The requested image has been deactivated. Image data download is forbidden.",
        )),
        Status::Active | Status::Deactivated => Ok(image.content.clone()),
        Status::Queued | Status::Saving | Status::Uploading => Ok(None),
    }
}

async fn download(app: App, call: Call) -> Result<Reply> {
    let image: Arc<Image> = get(&app.cell.read(), &cx(&call), id(&call)?)?;
    let Some(content) = content(&image, &call)? else { return Ok(Reply::no_content()) };
    let asked = call.headers.get("range").and_then(|v| v.to_str().ok());
    let range = asked.map(|text| range(text, content.size)).transpose()?.flatten();
    let lost = |e| Error::internal(format!("the bytes of image {} are not there", image.id)).because(e);
    let mut file = tokio::fs::File::open(path(&app.settings, image.id)).await.map_err(lost)?;
    let part = range.clone().unwrap_or(0..content.size);
    file.seek(SeekFrom::Start(part.start)).await?;
    let length = part.end - part.start;
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut reply = Reply::new(status)
        .header("content-type", "application/octet-stream")
        .header("accept-ranges", "bytes")
        .stream(read(file, length), length);
    reply = match range {
        Some(part) => {
            reply.header("content-range", format!("bytes {}-{}/{}", part.start, part.end - 1, content.size))
        }
        None => reply.header("content-md5", &content.md5),
    };
    Ok(reply)
}

fn read(file: tokio::fs::File, length: u64) -> ByteStream {
    Box::pin(futures_util::stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; CHUNK.min(left as usize)];
        let n = file.read(&mut chunk).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(n);
        Ok(Some((Bytes::from(chunk), (file, left - n as u64))))
    }))
}

/// The one range of a `Range` header. `None`: it is none that we answer, so everything is.
///
/// Errors: `Range` when it is outside of the data.
fn range(text: &str, size: u64) -> Result<Option<Range<u64>>> {
    let Some(spec) = text.strip_prefix("bytes=").filter(|s| !s.contains(',')) else { return Ok(None) };
    let Some((first, last)) = spec.trim().split_once('-') else { return Ok(None) };
    let number = |s: &str| s.parse::<u64>().ok();
    let range = match (number(first), number(last), first.is_empty(), last.is_empty()) {
        (Some(first), _, _, true) => first..size,
        (Some(first), Some(last), _, _) if first <= last => first..size.min(last.saturating_add(1)),
        (None, Some(last), true, _) => size.saturating_sub(last)..size,
        _ => return Ok(None),
    };
    match range.start < range.end {
        true => Ok(Some(range)),
        false => {
            Err(Error::new(Kind::Range, format!("The range is outside of the {size} bytes of the image.")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<Option<Range<u64>>, Kind>) {
        assert_eq!(range(text, 10).map_err(|e| e.kind()), expect, "{text}");
    }

    #[test]
    fn ranges() {
        check("bytes=0-3", Ok(Some(0..4)));
        check("bytes=4-", Ok(Some(4..10)));
        check("bytes=-3", Ok(Some(7..10)));
        check("bytes=0-99", Ok(Some(0..10)));
        check("bytes=10-", Err(Kind::Range));
        check("bytes=-0", Err(Kind::Range));
        check("bytes=3-2", Ok(None));
        check("bytes=0-1,3-4", Ok(None));
        check("lines=0-1", Ok(None));
    }
}
