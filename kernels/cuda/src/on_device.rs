//! The device as plugins see it: numbers by address, each checked before it is touched.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use forgelm_kernels_api::{
    DeviceMemory, DeviceModels, DevicePart, DeviceRefusal, DropMask, Election, Failure, Format,
    Host, HostMut, MagnitudeBits, OnDevice,
};

use crate::call::{Call, Numbers};
use crate::error::CudaError;
use crate::memory::{self, CudaMemory};
use crate::{Cuda, Device, merge, quantize};

/// Most bits that are counted at once: see `merge_ties_count`.
const COUNTED_BITS_MAX: u32 = 11;

fn argument(what: String) -> DeviceRefusal {
    DeviceRefusal::Argument(what)
}

/// An error of the device, with its causes.
fn refusal(error: &CudaError) -> DeviceRefusal {
    refusal_of(&Failure::from(error))
}

fn refusal_of(failure: &Failure) -> DeviceRefusal {
    let text = failure.to_string();
    match failure.is_out_of_memory() {
        true => DeviceRefusal::OutOfMemory(text),
        false => DeviceRefusal::Failed(text),
    }
}

/// What an op that could not go on said.
fn refusal_of_panic(panic: &(dyn Any + Send)) -> DeviceRefusal {
    if let Some(failure) = panic.downcast_ref::<Failure>() {
        return refusal_of(failure);
    }
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    DeviceRefusal::Failed(text.unwrap_or_else(|| "the device failed without a word".to_owned()))
}

impl Cuda {
    /// Where numbers lie that someone else names. They lie in one allocation that is in use.
    fn checked(
        &self,
        name: &str,
        part: DevicePart,
        format: Format,
    ) -> Result<Numbers, DeviceRefusal> {
        let device = self.device();
        let DevicePart { address, len, .. } = part;
        if part.device != self.ordinal() {
            let other = part.device;
            let here = device.label();
            return Err(argument(format!("`{name}` lies on cuda:{other}; expected {here}")));
        }
        if part.format != format {
            let found = part.format;
            return Err(argument(format!("`{name}` is {found:?}; expected {format:?}")));
        }
        if !address.is_multiple_of(format.n_bytes() as u64) {
            return Err(argument(format!("`{name}` is not aligned to its numbers")));
        }
        let is_held = |bytes| len == 0 || device.pool().holds(address, bytes);
        if !part.n_bytes().is_some_and(is_held) {
            let here = device.label();
            return Err(argument(format!(
                "`{name}` ({len} numbers at {address:#x}) is no memory in use on {here}; was it \
                 freed, or allocated past the program?"
            )));
        }
        Ok(Numbers { address, len, format })
    }

    /// [`Cuda::checked`] of f32, as many as are expected.
    fn floats(&self, name: &str, part: DevicePart, len: usize) -> Result<Numbers, DeviceRefusal> {
        let found = self.checked(name, part, Format::F32)?;
        if found.len == len {
            return Ok(found);
        }
        Err(argument(format!("`{name}` has {} numbers; expected {len}", found.len)))
    }

    /// The models of a merge into `out`, each as long, none of them written.
    fn models(
        &self,
        out: Option<Numbers>,
        models: DeviceModels<'_>,
        per_model: &[(&str, usize)],
    ) -> Result<(Vec<Numbers>, Option<Numbers>), DeviceRefusal> {
        let n = models.inputs.len();
        for &(name, found) in per_model {
            if found != n {
                return Err(argument(format!("{found} {name} for {n} models")));
            }
        }
        let len = match (out, models.inputs.first()) {
            (Some(out), _) => out.len,
            (None, Some(first)) => first.len,
            (None, None) => 0,
        };
        let read = |name: &str, part: DevicePart| {
            let found = self.floats(name, part, len)?;
            match out {
                Some(out) => apart(("out", out), (name, found)).map(|()| found),
                None => Ok(found),
            }
        };
        let inputs = models.inputs.iter().map(|&part| read("inputs", part));
        let base = models.base.map(|part| read("base", part)).transpose()?;
        Ok((inputs.collect::<Result<_, _>>()?, base))
    }

    /// Runs the body of an op; what it ends with is told.
    fn guarded<T>(
        &self,
        op: &'static str,
        body: impl FnOnce(&Call<'_>) -> T,
    ) -> Result<T, DeviceRefusal> {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let call = self.open(op);
            let result = body(&call);
            call.close();
            result
        }));
        ran.map_err(|panic| refusal_of_panic(&*panic))
    }

    /// Rows and their bytes, of which so many are a row: one of the two is written.
    fn rows(
        &self,
        (rows, bytes): (DevicePart, DevicePart),
        n_cols: usize,
        bytes_per_row: fn(usize) -> usize,
    ) -> Result<(Numbers, Numbers), DeviceRefusal> {
        let rows = self.checked("rows", rows, Format::F32)?;
        let bytes = self.checked("bytes", bytes, Format::U8)?;
        if n_cols == 0 || !rows.len.is_multiple_of(n_cols) || i32::try_from(n_cols).is_err() {
            return Err(argument(format!("{} numbers in rows of {n_cols}", rows.len)));
        }
        let expected = (rows.len / n_cols).checked_mul(bytes_per_row(n_cols));
        if expected != Some(bytes.len) {
            return Err(argument(format!(
                "{} numbers and {} bytes are not the same rows of {n_cols} numbers",
                rows.len, bytes.len
            )));
        }
        apart(("rows", rows), ("bytes", bytes))?;
        Ok((rows, bytes))
    }
}

/// That two arrays share no byte.
fn apart((a, x): (&str, Numbers), (b, y): (&str, Numbers)) -> Result<(), DeviceRefusal> {
    let end = |of: Numbers| of.address + (of.len * of.format.n_bytes()) as u64;
    if x.address < end(y) && y.address < end(x) {
        return Err(argument(format!("`{a}` and `{b}` overlap")));
    }
    Ok(())
}

/// The base of a method that reads one.
fn needed(base: Option<Numbers>) -> Result<Numbers, DeviceRefusal> {
    base.ok_or_else(|| argument("`base` is missing".to_owned()))
}

/// Refuses rows with numbers that a format has nothing for.
fn all_finite(n_bad: u32) -> Result<(), DeviceRefusal> {
    match n_bad {
        0 => Ok(()),
        n => Err(argument(format!("{n} of the numbers are not finite; expected none"))),
    }
}

fn bound(device: &Device) -> Result<(), DeviceRefusal> {
    device.bind().map_err(|error| refusal(&error))
}

impl OnDevice for Cuda {
    fn ordinal(&self) -> i32 {
        self.device().facts().ordinal as i32
    }

    fn stream(&self) -> usize {
        self.device().stream().cu_stream().addr()
    }

    fn part_of(&self, memory: &dyn DeviceMemory) -> Option<DevicePart> {
        let numbers = memory.as_any().downcast_ref::<CudaMemory>()?.numbers();
        let Numbers { address, len, format } = numbers;
        Some(DevicePart { device: self.ordinal(), address, len, format })
    }

    fn allocate(&self, format: Format, len: usize) -> Result<Box<dyn DeviceMemory>, DeviceRefusal> {
        let too_many = || argument(format!("no memory has {len} numbers"));
        let bytes = len.checked_mul(format.n_bytes()).filter(|&n| isize::try_from(n).is_ok());
        bytes.ok_or_else(too_many)?;
        let made = CudaMemory::zeros(self.device(), format, len);
        Ok(Box::new(made.map_err(|error| refusal(&error))?))
    }

    fn upload(&self, to: DevicePart, from: Host<'_>) -> Result<(), DeviceRefusal> {
        let (len, format) = match from {
            Host::F32(from) => (from.len(), Format::F32),
            Host::U8(from) => (from.len(), Format::U8),
            Host::U32(from) => (from.len(), Format::U32),
        };
        let to = self.checked("to", to, format)?;
        if to.len != len {
            return Err(argument(format!("{len} numbers to a tensor of {}", to.len)));
        }
        bound(self.device())?;
        memory::write(self.device(), "upload", to, from).map_err(|error| refusal(&error))
    }

    fn download(&self, from: DevicePart, to: HostMut<'_>) -> Result<(), DeviceRefusal> {
        let (len, format) = match &to {
            HostMut::F32(to) => (to.len(), Format::F32),
            HostMut::U8(to) => (to.len(), Format::U8),
            HostMut::U32(to) => (to.len(), Format::U32),
        };
        let from = self.checked("from", from, format)?;
        if from.len != len {
            return Err(argument(format!("{len} numbers from a tensor of {}", from.len)));
        }
        bound(self.device())?;
        memory::read(self.device(), "download", from, to).map_err(|error| refusal(&error))
    }

    fn synchronize(&self) -> Result<(), DeviceRefusal> {
        bound(self.device())?;
        self.device().synchronize().map_err(|error| refusal(&error))
    }

    fn merge_linear(
        &self,
        out: DevicePart,
        inputs: &[DevicePart],
        shares: &[f64],
    ) -> Result<(), DeviceRefusal> {
        let out = self.checked("out", out, Format::F32)?;
        let models = DeviceModels { inputs, base: None };
        let (inputs, _) = self.models(Some(out), models, &[("shares", shares.len())])?;
        self.guarded("merge_linear", |call| merge::linear(call, out, &inputs, shares))
    }

    fn merge_slerp(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        coefficients: [f64; 2],
    ) -> Result<(), DeviceRefusal> {
        let out = self.checked("out", out, Format::F32)?;
        let (inputs, base) = self.models(Some(out), models, &[("coefficients", 2)])?;
        let pair = [inputs[0], inputs[1]];
        self.guarded("merge_slerp", |call| merge::slerp(call, out, pair, base, coefficients))
    }

    fn ties_count(
        &self,
        models: DeviceModels<'_>,
        prefixes: Option<&[u32]>,
        bits: MagnitudeBits,
    ) -> Result<Vec<u64>, DeviceRefusal> {
        let MagnitudeBits { shift, bits: n_bits } = bits;
        if n_bits > COUNTED_BITS_MAX || shift + n_bits > 31 {
            return Err(argument(format!(
                "{n_bits} bits above {shift}; expected 11 at most of 31"
            )));
        }
        let n = models.inputs.len();
        let per_model = [("prefixes", prefixes.map_or(n, <[u32]>::len))];
        let (inputs, base) = self.models(None, models, &per_model)?;
        let base = needed(base)?;
        self.guarded("ties_count", |call| merge::ties_count(call, &inputs, base, prefixes, bits))
    }

    fn merge_ties(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        trimming: (&[u32], &[f64]),
        election: Election,
    ) -> Result<(), DeviceRefusal> {
        let out = self.checked("out", out, Format::F32)?;
        let (thresholds, shares) = trimming;
        let per_model = [("thresholds", thresholds.len()), ("shares", shares.len())];
        let (inputs, base) = self.models(Some(out), models, &per_model)?;
        let base = needed(base)?;
        self.guarded("merge_ties", |call| merge::ties(call, out, &inputs, base, trimming, election))
    }

    fn merge_dare(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        factors: &[f64],
        mask: DropMask,
    ) -> Result<(), DeviceRefusal> {
        let out = self.checked("out", out, Format::F32)?;
        let (inputs, base) = self.models(Some(out), models, &[("factors", factors.len())])?;
        let base = needed(base)?;
        if i64::try_from(mask.start).is_err() || i64::try_from(mask.kept_below).is_err() {
            return Err(argument("`mask` has numbers that no tensor has".to_owned()));
        }
        self.guarded("merge_dare", |call| merge::dare(call, out, &inputs, base, factors, mask))
    }

    fn quantize_four_bit(
        &self,
        bytes: DevicePart,
        rows: DevicePart,
        n_cols: usize,
        values: &[f32; 16],
    ) -> Result<(), DeviceRefusal> {
        let (rows, bytes) = self.rows((rows, bytes), n_cols, quantize::four_bit_row)?;
        let run = |call: &Call<'_>| quantize::four_bit(call, bytes, rows, n_cols, values);
        all_finite(self.guarded("quantize_four_bit", run)?)
    }

    fn dequantize_four_bit(
        &self,
        rows: DevicePart,
        bytes: DevicePart,
        n_cols: usize,
        values: &[f32; 16],
    ) -> Result<(), DeviceRefusal> {
        let (rows, bytes) = self.rows((rows, bytes), n_cols, quantize::four_bit_row)?;
        let run = |call: &Call<'_>| quantize::four_bit_back(call, rows, bytes, n_cols, values);
        self.guarded("dequantize_four_bit", run)
    }

    fn quantize_int8(
        &self,
        bytes: DevicePart,
        rows: DevicePart,
        n_cols: usize,
    ) -> Result<(), DeviceRefusal> {
        let (rows, bytes) = self.rows((rows, bytes), n_cols, quantize::int8_row)?;
        let run = |call: &Call<'_>| quantize::int8(call, bytes, rows, n_cols);
        all_finite(self.guarded("quantize_int8", run)?)
    }

    fn dequantize_int8(
        &self,
        rows: DevicePart,
        bytes: DevicePart,
        n_cols: usize,
    ) -> Result<(), DeviceRefusal> {
        let (rows, bytes) = self.rows((rows, bytes), n_cols, quantize::int8_row)?;
        self.guarded("dequantize_int8", |call| quantize::int8_back(call, rows, bytes, n_cols))
    }
}
