//! What every kernel library offers: one trait of operations, slices of numbers to slices of
//! numbers.
//!
//! It refuses to know what a model, a tensor, a file or a thread is. Start reading at [`Ops`].
//!
//! Letters in shapes: T tokens (packed rows), R scored rows, C hidden size, V vocabulary, H query
//! heads, H_kv key/value heads, D head size, F width of the MLP; N and K are the rows and columns
//! of a weight (out and in features). Everything is row-major `f32` unless said otherwise.

mod blocks;
pub mod dynamic_map;
mod failure;
mod float8;
mod frozen;
mod link;
mod memory;
mod on_device;
mod ops;
mod optimizer;
pub mod philox;
mod routing;

pub use blocks::{
    BlockFormat, BlockRows, BlockSource, Codes, Factor, FactorRows, Factors, Rounding,
};
pub use failure::{Failure, caught};
pub use float8::{Float8, Float8Layout, Float8Rows};
pub use frozen::{Compute, Dense, FrozenMatrix, MatrixForm, Pieces, RowSource};
pub use link::{DeviceLink, DeviceLinks, LinkError, Seat};
pub use memory::{
    Buffer, DeviceMemory, DeviceSlice, DeviceSliceMut, Format, Host, HostMut, MemoryRefused,
    Number, Precision, Slice, SliceMut, Workload,
};
pub use on_device::{
    DeviceModels, DevicePart, DeviceRefusal, DropMask, Election, MagnitudeBits, OnDevice, Placed,
};
pub use ops::{
    Activation, AttentionShape, Columns, Draw, DrawRule, Drawn, Dropout, GemmDims, GemmLayout,
    LowRank, Ops, Rotation, Segment, Write,
};
pub use optimizer::{Adafactor, AdafactorMoments, AdamW, Blocks8bit};
pub use routing::{Choice, Routing, RoutingMut};
