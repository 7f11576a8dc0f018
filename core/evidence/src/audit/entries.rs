//! What an audit log says happened when: for readers who want dates, not proof.
//!
//! A line that is no record (a crash tore it, someone damaged it) is passed over: whether the log is
//! sound is for [`super::verify`] to say.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use forgelm_artifact::UtcTime;
use forgelm_artifact::open::{self, OpenError};

use super::LINE_BYTES_MAX;
use super::scan::scan;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub time: UtcTime,
    /// Of which run.
    pub run_id: String,
    /// The dotted name.
    pub event: String,
}

/// The records of the log at `path`, in their order; none where there is no log.
///
/// # Errors
/// If the log is there and cannot be read.
pub fn read_entries(path: &Path) -> Result<Vec<AuditEntry>, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = match open::regular(path) {
        Ok((file, _)) => file,
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut entries = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let n_read = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        if n_read.map_err(io)? == 0 {
            return Ok(entries);
        }
        entries.extend(entry(line.trim_ascii_end()));
    }
}

fn entry(line: &[u8]) -> Option<AuditEntry> {
    let facts = scan(line).ok()?;
    Some(AuditEntry {
        time: facts.timestamp?.parse().ok()?,
        run_id: facts.run_id?.to_owned(),
        event: facts.event?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use forgelm_artifact::write::atomic;

    use super::read_entries;
    use crate::audit::LOG_FILE;
    use crate::tests::{event, open};

    #[test]
    fn records_are_read_and_a_torn_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        assert_eq!(read_entries(&path).unwrap(), []);
        let mut log = open(dir.path());
        log.append(&event("a", 1)).unwrap();
        log.append(&event("b", 2)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"timestamp\": \"2026-01-01T00:0");
        atomic(&path, &bytes).unwrap();
        let entries = read_entries(&path).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].time, "2026-01-01T00:00:00.000001Z".parse().unwrap());
        assert_eq!(
            (&*entries[1].run_id, &*entries[1].event),
            ("fg-0123456789ab", "training.interrupted")
        );
        assert!(read_entries(dir.path()).is_err());
    }
}
