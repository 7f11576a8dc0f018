//! The device that the run computes on, for merge methods and quantizers that work on it.
//!
//! Numbers of a device are named by a [`DevicePart`]: an address, which code on the processor must
//! not follow. The host's kernels work on them, in the order in which they are asked, and give the
//! same bits as the methods and formats of their names on the processor. What one may do with an
//! address beside that (kernels of one's own on [`DeviceKernels::stream`]) is unsafe code of one's
//! own.
//!
//! Start reading at [`DeviceKernels`].
#![expect(unsafe_code, reason = "calls functions of the host's table")]

use crate::Failed;
use crate::host;
use forgelm_abi::{
    DEVICE_CUDA, DEVICE_KERNELS, dtype_code, election, forgelm_device, forgelm_device_kernels,
    forgelm_device_models, forgelm_drop_mask, forgelm_dtype, forgelm_managed_tensor, forgelm_str,
    forgelm_tensor,
};
use std::ffi::c_void;
use std::ptr::{from_ref, null, null_mut};

pub use forgelm_kernels_api::{
    DeviceModels, DevicePart, DropMask, Election, Format, MagnitudeBits,
};

/// The host's kernels on its device. It is small: make it where it is used.
#[derive(Clone, Copy, Debug)]
pub struct DeviceKernels(&'static forgelm_device_kernels);

// SAFETY: the header lets any thread call the host's table, several at once.
unsafe impl Send for DeviceKernels {}
// SAFETY: as above.
unsafe impl Sync for DeviceKernels {}

impl DeviceKernels {
    /// Those of the program that loaded this library; `None` where the processor computes, and in a
    /// process of its own.
    #[must_use]
    pub fn of_host() -> Option<Self> {
        // SAFETY: the table of this id; the host keeps it for as long as the process.
        unsafe { host::extension::<forgelm_device_kernels>(host::host()?, DEVICE_KERNELS) }
            .map(Self)
    }

    /// [`DeviceKernels::of_host`], of which there must be some: a method is given numbers of a device.
    ///
    /// # Errors
    /// If there are none.
    pub fn needed() -> Result<Self, Failed> {
        Self::of_host().ok_or_else(|| Failed::new("the host has no `forgelm.device_kernels/1`"))
    }

    /// Those behind a table: for hosts that are in Rust, and for tests.
    ///
    /// # Safety
    /// The table is one of `forgelm.device_kernels/1`.
    #[must_use]
    pub const unsafe fn new(table: &'static forgelm_device_kernels) -> Self {
        Self(table)
    }

    /// The stream of everything: a `CUstream`.
    #[must_use]
    pub fn stream(self) -> *mut c_void {
        self.0.stream
    }

    /// Zeros on the device.
    ///
    /// # Errors
    /// If its memory is full.
    pub fn allocate(self, format: Format, len: usize) -> Result<DeviceBuffer, Failed> {
        let shape = [length(len)?];
        let mut owned = null_mut();
        host::call(self.0.allocate, |allocate, err| {
            let shape = shape.as_ptr();
            // SAFETY: the host's own function with its own table, and a place of ours.
            unsafe { allocate(self.0, dtype(format), 1, shape, &raw mut owned, err) }
        })?;
        Ok(DeviceBuffer { owned, format, len, device: self.0.device.device_id })
    }

    /// Copies numbers of the host to the device.
    ///
    /// # Errors
    /// If there are not as many, or the device fails.
    pub fn upload(self, to: DevicePart, from: &[f32]) -> Result<(), Failed> {
        let to = View::line(to)?;
        host::call(self.0.upload, |upload, err| {
            let (from, n_bytes) = (from.as_ptr().cast(), size_of_val(from));
            // SAFETY: the host's own function with its own table; as many bytes as are said.
            unsafe { upload(self.0, to.tensor(), from, n_bytes, err) }
        })
    }

    /// Copies numbers of the device to the host. Waits.
    ///
    /// # Errors
    /// If there are not as many, or the device fails.
    pub fn download(self, from: DevicePart, to: &mut [f32]) -> Result<(), Failed> {
        let from = View::line(from)?;
        host::call(self.0.download, |download, err| {
            let (n_bytes, to) = (size_of_val(to), to.as_mut_ptr().cast());
            // SAFETY: the host's own function with its own table; as many bytes as are said.
            unsafe { download(self.0, to, from.tensor(), n_bytes, err) }
        })
    }

    /// `out = sum_i shares[i] inputs[i]`, in f64 in the order of the models.
    ///
    /// # Errors
    /// If a length does not fit, or the device fails; so below.
    pub fn merge_linear(
        self,
        out: DevicePart,
        inputs: &[DevicePart],
        shares: &[f64],
    ) -> Result<(), Failed> {
        as_many("shares", shares.len(), inputs.len())?;
        let views = Models::new(DeviceModels { inputs, base: None })?;
        let out = View::line(out)?;
        host::call(self.0.merge_linear, |merge, err| {
            let models = views.models();
            // SAFETY: the host's own function with its own table; a share for each model.
            unsafe { merge(self.0, out.tensor(), &raw const models, shares.as_ptr(), err) }
        })
    }

    /// `out = a inputs[0] + b inputs[1]`, around the base if there is one.
    ///
    /// # Errors
    /// As [`DeviceKernels::merge_linear`].
    pub fn merge_slerp(
        self,
        out: DevicePart,
        models: DeviceModels<'_>,
        coefficients: [f64; 2],
    ) -> Result<(), Failed> {
        as_many("coefficients", 2, models.inputs.len())?;
        let (views, out) = (Models::new(models)?, View::line(out)?);
        host::call(self.0.merge_slerp, |merge, err| {
            let (models, coefficients) = (views.models(), coefficients.as_ptr());
            // SAFETY: the host's own function with its own table; two coefficients.
            unsafe { merge(self.0, out.tensor(), &raw const models, coefficients, err) }
        })
    }

    /// How many magnitudes of each model's changes have each value of some bits; with `prefixes`, of
    /// those whose bits above are their model's. Shapes: [models, 2^bits]. Waits.
    ///
    /// # Errors
    /// As [`DeviceKernels::merge_linear`].
    pub fn ties_count(
        self,
        models: DeviceModels<'_>,
        prefixes: Option<&[u32]>,
        MagnitudeBits { shift, bits }: MagnitudeBits,
    ) -> Result<Vec<u64>, Failed> {
        let n_models = models.inputs.len();
        if let Some(prefixes) = prefixes {
            as_many("prefixes", prefixes.len(), n_models)?;
        }
        if bits > 31 {
            return Err(Failed::argument(format!("{bits} bits of a magnitude, which has 31")));
        }
        let views = Models::new(models)?;
        let mut counts = vec![0; n_models << bits];
        host::call(self.0.ties_count, |count, err| {
            let (models, prefixes) = (views.models(), prefixes.map_or_else(null, <[u32]>::as_ptr));
            let counts = counts.as_mut_ptr();
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { count(self.0, &raw const models, prefixes, shift, bits, counts, err) }
        })?;
        Ok(counts)
    }

    /// Trims changes whose magnitude's bits are below their model's threshold, elects a sign for
    /// each element, and adds the mean, by shares, of the changes that have it to the base.
    ///
    /// # Errors
    /// As [`DeviceKernels::merge_linear`].
    pub fn merge_ties(
        self,
        out: DevicePart,
        models: DeviceModels<'_>,
        (thresholds, shares): (&[u32], &[f64]),
        election: Election,
    ) -> Result<(), Failed> {
        as_many("thresholds", thresholds.len(), models.inputs.len())?;
        as_many("shares", shares.len(), models.inputs.len())?;
        let election = match election {
            Election::Votes => election::VOTES,
            Election::Sum => election::SUM,
        };
        let (views, out) = (Models::new(models)?, View::line(out)?);
        host::call(self.0.merge_ties, |merge, err| {
            let models = views.models();
            let (models, thresholds, shares) =
                (&raw const models, thresholds.as_ptr(), shares.as_ptr());
            // SAFETY: the host's own function with its own table; a number for each model.
            unsafe { merge(self.0, out.tensor(), models, thresholds, shares, election, err) }
        })
    }

    /// Drops changes at random and adds the rest, each times its model's factor, to the base.
    ///
    /// # Errors
    /// As [`DeviceKernels::merge_linear`].
    pub fn merge_dare(
        self,
        out: DevicePart,
        models: DeviceModels<'_>,
        factors: &[f64],
        mask: DropMask,
    ) -> Result<(), Failed> {
        as_many("factors", factors.len(), models.inputs.len())?;
        let mask = forgelm_drop_mask {
            key_low: mask.key[0],
            key_high: mask.key[1],
            kept_below: mask.kept_below,
            start: mask.start as u64,
        };
        let (views, out) = (Models::new(models)?, View::line(out)?);
        host::call(self.0.merge_dare, |merge, err| {
            let models = views.models();
            let (models, mask) = (&raw const models, &raw const mask);
            // SAFETY: the host's own function with its own table; a factor for each model.
            unsafe { merge(self.0, out.tensor(), models, factors.as_ptr(), mask, err) }
        })
    }

    /// Numbers to bytes, each row by itself, in `nf4`, `fp4` or `int8`. Waits.
    ///
    /// # Errors
    /// For another format, and for a number that is not finite; if a length does not fit, or the
    /// device fails.
    pub fn quantize(
        self,
        format: &str,
        rows: DevicePart,
        n_cols: usize,
        bytes: DevicePart,
    ) -> Result<(), Failed> {
        let (rows, bytes) = views_of_rows(rows, n_cols, bytes)?;
        host::call(self.0.quantize, |quantize, err| {
            let format = forgelm_str::new(format);
            // SAFETY: the host's own function with its own table, which checks the rest.
            unsafe { quantize(self.0, format, rows.tensor(), bytes.tensor(), err) }
        })
    }

    /// Bytes to numbers, each row by itself.
    ///
    /// # Errors
    /// As [`DeviceKernels::quantize`].
    pub fn dequantize(
        self,
        format: &str,
        bytes: DevicePart,
        n_cols: usize,
        rows: DevicePart,
    ) -> Result<(), Failed> {
        let (rows, bytes) = views_of_rows(rows, n_cols, bytes)?;
        host::call(self.0.dequantize, |dequantize, err| {
            let format = forgelm_str::new(format);
            // SAFETY: the host's own function with its own table, which checks the rest.
            unsafe { dequantize(self.0, format, bytes.tensor(), rows.tensor(), err) }
        })
    }
}

/// Memory of the device that belongs to whoever has it.
#[derive(Debug)]
pub struct DeviceBuffer {
    owned: *mut forgelm_managed_tensor,
    device: i32,
    format: Format,
    len: usize,
}

// SAFETY: the header lets any thread use it and free it.
unsafe impl Send for DeviceBuffer {}
// SAFETY: as above.
unsafe impl Sync for DeviceBuffer {}

impl DeviceBuffer {
    /// All of it.
    #[must_use]
    pub fn part(&self) -> DevicePart {
        // SAFETY: the host's tensor, which is ours.
        let address = unsafe { (*self.owned).tensor.data } as u64;
        DevicePart { device: self.device, address, len: self.len, format: self.format }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: as above.
        if let Some(deleter) = unsafe { (*self.owned).deleter } {
            // SAFETY: the maker's own function with its own tensor, once.
            unsafe { deleter(self.owned) };
        }
    }
}

fn dtype(format: Format) -> forgelm_dtype {
    let (code, bits) = match format {
        Format::F32 => (dtype_code::FLOAT, 32),
        Format::Bf16 => (dtype_code::BFLOAT, 16),
        Format::U8 => (dtype_code::UINT, 8),
        Format::U32 => (dtype_code::UINT, 32),
    };
    forgelm_dtype { code, bits, lanes: 1 }
}

fn length(len: usize) -> Result<i64, Failed> {
    i64::try_from(len).map_err(|_| Failed::argument(format!("no tensor has {len} numbers")))
}

/// That an array has a number for each model.
fn as_many(name: &str, found: usize, n_models: usize) -> Result<(), Failed> {
    if found == n_models {
        return Ok(());
    }
    Err(Failed::argument(format!("{found} {name} for {n_models} models")))
}

/// A part as the header has it, with room for its shape.
struct View {
    tensor: forgelm_tensor,
    /// Shape and strides.
    axes: Box<[i64; 4]>,
}

impl View {
    fn line(part: DevicePart) -> Result<Self, Failed> {
        Ok(Self::new(part, 1, [length(part.len)?, 0, 1, 0]))
    }

    fn rows(part: DevicePart, n_rows: usize, width: usize) -> Result<Self, Failed> {
        let (n_rows, width) = (length(n_rows)?, length(width)?);
        Ok(Self::new(part, 2, [n_rows, width, width, 1]))
    }

    fn new(part: DevicePart, ndim: i32, axes: [i64; 4]) -> Self {
        let axes = Box::new(axes);
        let tensor = forgelm_tensor {
            data: part.address as *mut c_void,
            device: forgelm_device { device_type: DEVICE_CUDA, device_id: part.device },
            ndim,
            dtype: dtype(part.format),
            shape: axes.as_ptr(),
            strides: axes[2..].as_ptr(),
            byte_offset: 0,
        };
        Self { tensor, axes }
    }

    fn tensor(&self) -> *const forgelm_tensor {
        debug_assert_eq!(self.tensor.shape, self.axes.as_ptr());
        &raw const self.tensor
    }
}

/// Rows and their bytes, of which each row has as many.
fn views_of_rows(
    rows: DevicePart,
    n_cols: usize,
    bytes: DevicePart,
) -> Result<(View, View), Failed> {
    let n_rows = rows.len.checked_div(n_cols).unwrap_or(0);
    let of_row = bytes.len.checked_div(n_rows).unwrap_or(0);
    Ok((View::rows(rows, n_rows, n_cols)?, View::rows(bytes, n_rows, of_row)?))
}

/// Models as the header has them.
struct Models {
    tensors: Vec<forgelm_tensor>,
    base: Option<View>,
    /// The shapes that the tensors point to.
    _views: Vec<View>,
}

impl Models {
    fn new(models: DeviceModels<'_>) -> Result<Self, Failed> {
        let views: Vec<View> =
            models.inputs.iter().map(|&part| View::line(part)).collect::<Result<_, _>>()?;
        let tensors = views.iter().map(|view| view.tensor).collect();
        Ok(Self { tensors, base: models.base.map(View::line).transpose()?, _views: views })
    }

    fn models(&self) -> forgelm_device_models {
        forgelm_device_models {
            inputs: self.tensors.as_ptr(),
            n_inputs: self.tensors.len(),
            base: self.base.as_ref().map_or_else(null, |base| from_ref(&base.tensor)),
        }
    }
}
