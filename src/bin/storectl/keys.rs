//! `storectl del` and `storectl prime`.

use crate::TOOL;
use crate::args::Target;
use crate::common::key::Key;
use crate::common::options::Care;
use crate::common::{self, Failure};
use serde_json::json;

/// The NATO alphabet: each word under its first letter.
const WORDS: [&str; 26] = [
    "Alpha", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India", "Juliett", "Kilo",
    "Lima", "Mike", "November", "Oscar", "Papa", "Quebec", "Romeo", "Sierra", "Tango", "Uniform", "Victor",
    "Whiskey", "X-ray", "Yankee", "Zulu",
];

/// Deletes a key.
pub(crate) async fn delete(target: &Target, key: &Key, care: &Care, json: bool) -> Result<(), Failure> {
    let key = key.bytes()?;
    let written = target.store(care).await?.delete(key).await?;
    care.check(TOOL, "deleted", written.consistency);
    if json {
        let (version, consistency) = (written.version.to_string(), written.consistency.name());
        common::print(json!({ "version": version, "consistency": consistency }))?;
    }
    Ok(())
}

/// Stores the alphabet.
pub(crate) async fn prime(target: &Target, care: &Care, json: bool) -> Result<(), Failure> {
    let client = target.store(care).await?;
    let mut least = care.consistency.into();
    for word in WORDS {
        let written = client.put(&word.as_bytes()[..1], word).await.map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(failure.exit, format!("stopped at {word}: {}", failure.message))
        })?;
        least = written.consistency.min(least);
    }
    care.check(TOOL, "stored", least);
    if json {
        return common::print(json!({ "stored": WORDS.len(), "consistency": least.name() }));
    }
    common::print(format!("stored {} keys, A = {} to Z = {}", WORDS.len(), WORDS[0], WORDS[25]))
}
