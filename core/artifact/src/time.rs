//! Points in time as text. Where the time comes from is the program's business: a [`Clock`] is
//! passed in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
///
/// Shown as `2026-01-01T00:00:00.000001+00:00`, always with six fractional digits; read with none
/// to nine, and with any offset or `Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcTime(pub i64);

/// Text that is no RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a time; expected the form 2026-01-01T00:00:00.000000+00:00", crate::Quoted(.text))]
pub struct TimeError {
    /// The text found.
    pub text: String,
}

impl UtcTime {
    /// With whole seconds only: `2026-01-01T00:00:00+00:00`.
    ///
    /// # Panics
    /// If the year is not in -9999..=9999: no clock shows that.
    #[must_use]
    pub fn to_text_seconds(self) -> String {
        self.timestamp().strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string()
    }

    /// The date alone: `2026-01-01`.
    ///
    /// # Panics
    /// As [`UtcTime::to_text_seconds`].
    #[must_use]
    pub fn to_text_date(self) -> String {
        self.timestamp().strftime("%Y-%m-%d").to_string()
    }

    fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).expect("a year of four digits")
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.timestamp().strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"))
    }
}

impl FromStr for UtcTime {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let error = || TimeError { text: text.to_owned() };
        // The parser below also takes a blank between date and time, and names of zones.
        if text.len() > 64 || text.as_bytes().get(10) != Some(&b'T') || text.contains('[') {
            return Err(error());
        }
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| error())?;
        Ok(Self(timestamp.as_microsecond()))
    }
}

/// Where the time comes from. The real one is the program's; tests have [`FixedClock`].
pub trait Clock: Send + Sync {
    /// Now, as calendars show it. May jump back.
    fn utc(&self) -> UtcTime;

    /// Time since some fixed point. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// A clock that stands still.
#[derive(Clone, Copy, Debug)]
pub struct FixedClock(pub UtcTime);

impl Clock for FixedClock {
    fn utc(&self) -> UtcTime {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::UtcTime;

    /// 2026-01-01 is 20454 days after 1970-01-01: 56 years of 365 days and 14 leap days.
    #[test]
    fn text_and_back() {
        let t = UtcTime(20_454 * 86_400_000_000 + 1);
        assert_eq!(t.to_string(), "2026-01-01T00:00:00.000001+00:00");
        assert_eq!(t.to_text_seconds(), "2026-01-01T00:00:00+00:00");
        assert_eq!(t.to_text_date(), "2026-01-01");
        let whole = UtcTime(t.0 - 1);
        assert_eq!(whole.to_string(), "2026-01-01T00:00:00.000000+00:00");
        for text in ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00.0+01:00"] {
            assert_eq!(text.parse(), Ok(whole));
        }
        assert_eq!("2026-01-01T00:00:00.000001999Z".parse(), Ok(t));
        for text in ["2026-01-01T00:00:00", "2026-01-01 00:00:00Z", "2026-13-01T00:00:00Z", ""] {
            assert!(text.parse::<UtcTime>().is_err(), "{text}");
        }
    }
}
