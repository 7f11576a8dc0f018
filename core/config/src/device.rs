//! Where a model is computed.

use std::fmt;
use std::str::FromStr;

/// A place to compute in, as `training.device` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first NVIDIA device, where there is one that can be used; else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA device by its number, 0-based.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDevice;

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number =
                    text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let number = number.filter(|n| n.len() <= 3).ok_or(NoDevice)?;
                number.parse().map(Self::Cuda).map_err(|_| NoDevice)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, NoDevice};

    #[test]
    fn names_of_devices() {
        for (text, device) in [
            ("auto", Ok(Device::Auto)),
            ("cpu", Ok(Device::Cpu)),
            ("cuda", Ok(Device::Cuda(0))),
            ("cuda:0", Ok(Device::Cuda(0))),
            ("cuda:17", Ok(Device::Cuda(17))),
            ("cuda:", Err(NoDevice)),
            ("cuda:-1", Err(NoDevice)),
            ("cuda:+1", Err(NoDevice)),
            ("cuda:1000", Err(NoDevice)),
            ("CUDA:0", Err(NoDevice)),
            ("gpu", Err(NoDevice)),
            ("", Err(NoDevice)),
        ] {
            assert_eq!(text.parse(), device, "{text}");
        }
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
    }
}
