//! `shisa node token`: asks the plane that is up for a join token, as the administrator.

use crate::cli::Token;
use crate::http::text;
use crate::image;
use crate::progress::say;
use crate::state::{Directory, write};
use base::Result;
use serde_json::json;

pub async fn run(directory: &Directory, args: &Token) -> Result<()> {
    directory.need_running()?;
    let admin = image::admin(directory).await?;
    let new = json!({"join_token": {"uses": args.uses, "ttl_secs": args.ttl}});
    let token = text(&admin.post("/fleet/v1/join_tokens", new).await?["join_token"]["token"]);
    match &args.out {
        Some(file) => write(file, format!("{token}\n").as_bytes(), 0o600)?,
        None => say(token),
    }
    Ok(())
}
