//! The patches of an answer, a line of JSON each. What follows the last end of a line is one, too: a plane of an older
//! build answers one patch without an end.

use crate::Patches;
use base::node::Patch;
use base::{Error, Result};
use bytes::{Bytes, BytesMut};
use futures_util::stream::try_unfold;
use http_body_util::BodyExt;
use hyper::body::Body;

struct Lines<B> {
    body: B,
    /// The beginning of a line.
    part: BytesMut,
    /// What came behind it and was not looked at.
    rest: Bytes,
    bytes_max: usize,
}

pub fn of<B>(body: B, bytes_max: usize) -> Patches
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let lines = Lines { body, part: BytesMut::new(), rest: Bytes::new(), bytes_max };
    Box::pin(try_unfold(lines, |mut lines: Lines<B>| async move {
        Ok(lines.next().await?.map(|patch| (patch, lines)))
    }))
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    async fn next(&mut self) -> Result<Option<Patch>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                if self.part.is_empty() {
                    return parse(&line).map(Some);
                }
                self.part.extend_from_slice(&line);
                return parse(&self.part.split()).map(Some);
            }
            self.part.extend_from_slice(&std::mem::take(&mut self.rest));
            if self.part.len() > self.bytes_max {
                let most = self.bytes_max;
                return Err(Error::unavailable(format!("the plane's answer is larger than {most} bytes")));
            }
            match self.body.frame().await {
                Some(frame) => {
                    let cut = |e| Error::unavailable("the plane's answer ended early").because(e);
                    self.rest = frame.map_err(cut)?.into_data().unwrap_or_default();
                }
                None if self.part.is_empty() => return Ok(None),
                None => return parse(&self.part.split()).map(Some),
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Patch> {
    serde_json::from_slice(line).map_err(|e| Error::unavailable("the plane's answer is not one").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::Generation;
    use futures_util::TryStreamExt;
    use futures_util::stream::iter;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    fn line(revision: u64) -> String {
        let generation = Generation { epoch: 1, revision };
        serde_json::to_string(&Patch { generation, ..Patch::default() }).unwrap()
    }

    async fn check(chunks: Vec<String>, expect: &[u64]) {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::from(chunk))));
        let patches: Vec<Patch> = of(StreamBody::new(iter(frames)), 1_000).try_collect().await.unwrap();
        assert_eq!(patches.iter().map(|p| p.generation.revision).collect::<Vec<_>>(), expect);
    }

    #[tokio::test]
    async fn a_line_is_a_patch_however_it_comes() {
        let (a, b) = (line(7), line(8));
        check(vec![], &[]).await;
        check(vec![a.clone()], &[7]).await;
        check(vec![format!("{a}\n{b}\n")], &[7, 8]).await;
        check(vec![format!("{a}\n{}", &b[..5]), b[5..].into(), "\n".into()], &[7, 8]).await;
        check(vec![a[..9].into(), format!("{}\n", &a[9..]), format!("{b}\n")], &[7, 8]).await;
    }

    #[tokio::test]
    async fn what_is_no_patch_or_too_long_is_an_error() {
        for text in ["{}\n".to_string(), line(1)[..9].into(), "x".repeat(1_001)] {
            let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from(text)))];
            let patches = of(StreamBody::new(iter(frames)), 1_000).try_collect::<Vec<_>>().await;
            patches.unwrap_err();
        }
    }
}
