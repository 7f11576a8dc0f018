//! Weights of which each process has a part: frozen, or formed again after each step (see
//! `trainable/own.rs`).
//!
//! The bytes of every matrix are cut evenly between the processes, and what a unit of the model needs
//! (the embedding, a decoder layer, the head) is gathered when the unit runs, while the one before it
//! computes, and let go of behind it. Vectors are small and stay whole on every process. Parts lie in
//! the memory of the host, or on the device where devices are linked.
//!
//! Every gather is a call of all processes, so all of them must make the same ones. Before a pass over
//! the model each says which pass it is ([`Passage`]); a process that has nothing to run at that time
//! is in [`Parts::accompany`] and gives its parts to the others. The leader calls them there when it
//! runs something alone.
//!
//! Papers: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.3; Zhao et al. 2023,
//! arXiv:2304.11277, section 3.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_collective::{CollectiveError, Members, Pending};
use forgelm_kernels_api::{Buffer, DeviceLink, FrozenMatrix, MatrixForm, Ops, Slice};

use crate::decoder::Part;

/// Matrices that are gathered together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The embedding, also where it is the head.
    Embedding,
    /// A decoder layer.
    Layer(usize),
    /// The head, where it is a matrix of its own.
    Head,
}

/// A pass over some units, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// The embedding and all layers.
    Up,
    /// The head.
    Head,
    /// The layers from the last one down to this one.
    Down(usize),
    /// All layers, for what is derived from them.
    Layers,
    /// One layer.
    Layer(usize),
}

/// What processes say before a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// This one has nothing to run.
    Nothing,
    /// Nor has the leader, which called the others: they wait on.
    Wait,
    Passage(Passage),
}

/// When the next unit of a pass is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// While the one before it computes.
    Before,
    /// As [`Prefetch::Before`] in the pass up; in the pass down when the one before it has computed, so
    /// that there are never two.
    AfterInBackward,
    /// When the one before it has computed.
    Never,
}

/// The processes that hold a model together.
#[derive(Clone, Debug)]
pub struct Holders {
    /// All processes of the run.
    pub everyone: Members,
    /// Those among them each of which has a part of every matrix; with the others they have the whole
    /// model again.
    pub members: Members,
    /// When parts come together.
    pub prefetch: Prefetch,
    /// What carries parts between the devices of the members, where each keeps its own on its device.
    pub link: Option<Arc<dyn DeviceLink>>,
    /// What the leader tells the others when it begins a pass while they wait to be told something:
    /// they come to [`Decoder::accompany`](crate::Decoder::accompany).
    pub call: Vec<u8>,
}

/// What this process has of the matrices of a unit.
#[derive(Default)]
struct UnitPart {
    /// Which matrices, in the order in which their bytes follow one another.
    forms: Vec<(usize, Box<dyn MatrixForm>)>,
    /// On the host, until they are first sent from a device.
    own: Mutex<Arc<Buffer<u8>>>,
}

impl UnitPart {
    fn own(&self) -> MutexGuard<'_, Arc<Buffer<u8>>> {
        // What a thread that panicked was writing ends the run.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes them, on the host.
    fn edit(&mut self, edit: impl FnOnce(&mut Vec<u8>)) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Arc::unwrap_or_clone(std::mem::take(own)).into_host();
        edit(&mut bytes);
        *own = Arc::new(bytes.into());
    }
}

/// The matrices of one unit, by their index.
pub(crate) type Matrices = Vec<Option<Box<dyn FrozenMatrix>>>;

/// This process's parts of all matrices, and what is gathered of them now.
pub(crate) struct Parts {
    holders: Holders,
    ops: Arc<dyn Ops>,
    n_layers: usize,
    embedding: UnitPart,
    layers: Vec<UnitPart>,
    head: UnitPart,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    /// Of the pass that runs: what it still comes to.
    ahead: VecDeque<Unit>,
    waits_for_end: bool,
    /// Of the leader: it called the others.
    has_called: bool,
    /// The unit that runs, or ran last.
    here: Option<(Unit, Arc<Matrices>)>,
    coming: Option<(Unit, Pending<Buffer<u8>>)>,
    /// Where the bytes of the next unit go.
    room: Buffer<u8>,
}

impl Parts {
    pub(crate) fn new(holders: Holders, ops: &Arc<dyn Ops>, n_layers: usize) -> Self {
        Self {
            holders,
            ops: Arc::clone(ops),
            n_layers,
            embedding: UnitPart::default(),
            layers: (0..n_layers).map(|_| UnitPart::default()).collect(),
            head: UnitPart::default(),
            gathered: Mutex::default(),
        }
    }

    /// Keeps this process's part of a matrix, in the place of what it had of that.
    pub(crate) fn keep(&mut self, unit: Unit, index: usize, matrix: &dyn FrozenMatrix) {
        self.give_back(unit, index);
        let (form, bytes) = matrix.take_apart();
        let own = self.range(bytes.len(), self.holders.members.rank());
        let part = self.part_mut(unit);
        part.forms.push((index, form));
        part.edit(|all| {
            // No more than there is: this memory is what the parts are made for.
            all.reserve_exact(own.len());
            all.extend_from_slice(&bytes[own]);
        });
    }

    /// Gives back the memory of a matrix that nothing reads any more.
    pub(crate) fn give_back(&mut self, unit: Unit, index: usize) {
        let Some(own) = self.place(unit, index) else { return };
        let part = self.part_mut(unit);
        part.forms.retain(|(of, _)| *of != index);
        part.edit(|all| {
            all.drain(own);
            all.shrink_to_fit();
        });
    }

    /// Puts other numbers in the place of a matrix that has the same form. Every process does so with
    /// the same matrix, when none runs a pass.
    pub(crate) fn renew(&self, unit: Unit, index: usize, matrix: &dyn FrozenMatrix) {
        // What is gathered is what was.
        self.lock().here = None;
        let (_, bytes) = matrix.take_apart();
        let own = self.range(bytes.len(), self.holders.members.rank());
        let place = self.place(unit, index).expect("it is in parts");
        let mut all = self.part(unit).own();
        Arc::make_mut(&mut all).part_mut(place).copy_from_host(&bytes[own]);
    }

    /// Where this process's part of a matrix lies among those of its unit.
    fn place(&self, unit: Unit, index: usize) -> Option<Range<usize>> {
        let rank = self.holders.members.rank();
        let n_own = |form: &dyn MatrixForm| self.range(form.n_bytes(), rank).len();
        let mut end = 0;
        for (of, form) in &self.part(unit).forms {
            let start = end;
            end += n_own(form.as_ref());
            if *of == index {
                return Some(start..end);
            }
        }
        None
    }

    /// Memory held, in bytes, besides what is gathered.
    pub(crate) fn n_bytes(&self) -> usize {
        let all = self.layers.iter().chain([&self.embedding, &self.head]);
        all.map(|part| part.own().len()).sum()
    }

    fn part(&self, unit: Unit) -> &UnitPart {
        match unit {
            Unit::Embedding => &self.embedding,
            Unit::Layer(layer) => &self.layers[layer],
            Unit::Head => &self.head,
        }
    }

    fn part_mut(&mut self, unit: Unit) -> &mut UnitPart {
        match unit {
            Unit::Embedding => &mut self.embedding,
            Unit::Layer(layer) => &mut self.layers[layer],
            Unit::Head => &mut self.head,
        }
    }

    /// The bytes of a process, of a matrix of so many.
    fn range(&self, n_bytes: usize, rank: usize) -> Range<usize> {
        let n_ranks = self.holders.members.n_ranks();
        rank * n_bytes / n_ranks..(rank + 1) * n_bytes / n_ranks
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // What a thread that panicked had gathered is whole.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The units of a pass that have something to gather.
    fn units(&self, passage: Passage) -> VecDeque<Unit> {
        let units: Vec<Unit> = match passage {
            Passage::Up => {
                let layers = (0..self.n_layers).map(Unit::Layer);
                std::iter::once(Unit::Embedding).chain(layers).collect()
            }
            Passage::Head => vec![self.head_unit()],
            Passage::Down(first) => (first..self.n_layers).rev().map(Unit::Layer).collect(),
            Passage::Layers => (0..self.n_layers).map(Unit::Layer).collect(),
            Passage::Layer(layer) => vec![Unit::Layer(layer)],
        };
        units.into_iter().filter(|unit| !self.part(*unit).forms.is_empty()).collect()
    }

    /// Begins a pass.
    ///
    /// Ends what is being done with a [`CollectiveError`] if the processes no longer speak to each
    /// other; so below.
    pub(crate) fn begin(&self, passage: Passage) {
        let mut gathered = self.lock();
        let everyone = &self.holders.everyone;
        gathered.has_called |= or_end(everyone.call(&self.holders.call));
        if gathered.has_called {
            everyone.give_no_signs();
        }
        or_end(self.announce(Said::Passage(passage)));
        gathered.waits_for_end = self.waits_for_end(passage);
        gathered.ahead = self.units(passage);
        if gathered.ahead.front() == gathered.here.as_ref().map(|(unit, _)| unit) {
            // Every process has it still.
            gathered.ahead.pop_front();
        }
        self.ask_for_next(&mut gathered);
        self.give_signs(&gathered);
    }

    /// Between two passes of the leader the others, whom it called, hear that it lives.
    fn give_signs(&self, gathered: &Gathered) {
        let is_through = gathered.ahead.is_empty() && gathered.coming.is_none();
        if gathered.has_called && is_through {
            let everyone = &self.holders.everyone;
            let n_ranks = everyone.n_ranks();
            let sign = to_number(Said::Wait).to_le_bytes();
            everyone.give_signs(move |line| {
                line.all_gather_known(&sign, &vec![sign.len(); n_ranks]).map(drop)
            });
        }
    }

    /// Of the leader: the others, if it called them, wait to be told something again.
    pub(crate) fn let_go(&self) -> Result<(), CollectiveError> {
        if std::mem::take(&mut self.lock().has_called) {
            self.holders.everyone.give_no_signs();
            self.accompany(&mut |_| Ok(()))?;
            self.holders.everyone.told();
        }
        Ok(())
    }

    /// The matrices of a unit of the pass that runs.
    ///
    /// # Panics
    /// If it is not the next one of the pass, or the one that was there last: a bug of the caller.
    pub(crate) fn take(&self, unit: Unit) -> Arc<Matrices> {
        let mut gathered = self.lock();
        if let Some((here, matrices)) = &gathered.here
            && *here == unit
        {
            return Arc::clone(matrices);
        }
        if self.part(unit).forms.is_empty() {
            return Arc::default();
        }
        // The memory of the last one, before there is another.
        gathered.here = None;
        if gathered.coming.is_none() {
            self.ask(&mut gathered);
        }
        let coming = gathered.coming.take();
        let (came, bytes) = coming.expect("a pass that was begun asks for its units");
        assert_eq!(came, unit, "units of a pass come in their order");
        let bytes = or_end(bytes.wait());
        let matrices = Arc::new(self.put_together(unit, bytes.all()));
        gathered.room = bytes;
        // Not before: of two units there is room for the bytes of one beside the matrices of the other.
        self.ask_for_next(&mut gathered);
        self.give_signs(&gathered);
        gathered.here = Some((unit, Arc::clone(&matrices)));
        matrices
    }

    /// The head, which is a pass of its own.
    pub(crate) fn take_head(&self) -> Arc<Matrices> {
        self.begin(Passage::Head);
        self.take(self.head_unit())
    }

    fn head_unit(&self) -> Unit {
        if self.head.forms.is_empty() { Unit::Embedding } else { Unit::Head }
    }

    /// Gives this process's parts to the others until no process runs anything more. In a pass down
    /// `left` is called where a process that runs it has left a part of the model.
    pub(crate) fn accompany(
        &self,
        left: &mut dyn FnMut(Part) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        loop {
            let (said, is_ours) = self.announce(Said::Nothing)?;
            match said {
                Said::Nothing => break,
                Said::Wait => {}
                Said::Passage(passage) => self.give(passage, is_ours, left)?,
            }
        }
        self.lock().here = None;
        Ok(())
    }

    /// Gives this process's parts to others in a pass, unless these have the whole model without it:
    /// the calls of [`Parts::begin`] and [`Parts::take`] in their order.
    fn give(
        &self,
        passage: Passage,
        is_ours: bool,
        left: &mut dyn FnMut(Part) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let mut gathered = self.lock();
        let mut units = if is_ours { self.units(passage) } else { VecDeque::new() };
        if units.front() == gathered.here.as_ref().map(|(unit, _)| unit) {
            units.pop_front();
        }
        if let Some(last) = units.back() {
            // Who runs the pass has its last unit from now on, and this process nothing of it.
            gathered.here = Some((*last, Arc::default()));
        }
        let mut ahead = units.clone();
        let mut give_next = || {
            let Some(unit) = ahead.pop_front() else { return Ok(()) };
            let room = std::mem::take(&mut gathered.room);
            gathered.room = self.gather(unit, room).wait()?;
            Ok::<(), CollectiveError>(())
        };
        if !self.waits_for_end(passage) {
            give_next()?;
        }
        let Passage::Down(first) = passage else {
            return units.iter().try_for_each(|_| give_next());
        };
        left(Part::Head)?;
        for layer in (first..self.n_layers).rev() {
            if units.contains(&Unit::Layer(layer)) {
                give_next()?;
            }
            left(Part::Layer(layer))?;
        }
        left(Part::Embedding)
    }

    /// Whether units of a pass come when the ones before them have computed.
    fn waits_for_end(&self, passage: Passage) -> bool {
        match (self.holders.prefetch, passage) {
            (Prefetch::Never, _) | (Prefetch::AfterInBackward, Passage::Down(_)) => true,
            (Prefetch::Before | Prefetch::AfterInBackward, _) => false,
        }
    }

    fn ask_for_next(&self, gathered: &mut Gathered) {
        if !gathered.waits_for_end {
            self.ask(gathered);
        }
    }

    fn ask(&self, gathered: &mut Gathered) {
        if let Some(unit) = gathered.ahead.pop_front() {
            let room = std::mem::take(&mut gathered.room);
            gathered.coming = Some((unit, self.gather(unit, room)));
        }
    }

    /// The bytes of a unit, by process, at the beginning of this room.
    fn gather(&self, unit: Unit, room: Buffer<u8>) -> Pending<Buffer<u8>> {
        let (members, n_bytes) = (&self.holders.members, self.n_bytes_of(unit));
        let Some(link) = &self.holders.link else {
            let own = Arc::clone(&self.part(unit).own());
            return members.start(move |line| {
                let mut all = room.into_host();
                line.all_gather_into(own.all().on_host(), &mut all, &n_bytes)?;
                Ok(all.into())
            });
        };
        let (own, link) = (self.placed(unit), Arc::clone(link));
        let n = n_bytes.iter().sum();
        let mut room = self.placed_room(room, n);
        let n_sent = own.len() * (members.n_ranks() - 1);
        members.start(move |line| {
            let all = room.part_mut(0..n);
            line.carry(n_sent, || link.all_gather_bytes(own.all(), all, &n_bytes))?;
            Ok(room)
        })
    }

    /// What this process has of a unit, on its device.
    fn placed(&self, unit: Unit) -> Arc<Buffer<u8>> {
        let mut own = self.part(unit).own();
        if let Buffer::Host(_) = own.as_ref() {
            let bytes = Arc::unwrap_or_clone(std::mem::take(&mut *own)).into_host();
            *own = Arc::new(self.to_device(bytes));
        }
        Arc::clone(&own)
    }

    /// Room on the device for so many bytes of a unit, and for those of any other.
    fn placed_room(&self, room: Buffer<u8>, n: usize) -> Buffer<u8> {
        if matches!(room, Buffer::Device(_)) && room.len() >= n {
            return room;
        }
        drop(room);
        let layers = (0..self.n_layers).map(Unit::Layer);
        let units = layers.chain([Unit::Embedding, Unit::Head]);
        let largest = units.map(|unit| self.n_bytes_of(unit).iter().sum()).max();
        self.to_device(vec![0; largest.unwrap_or(0)])
    }

    fn to_device(&self, bytes: Vec<u8>) -> Buffer<u8> {
        let placed = self.ops.place_bytes(bytes);
        placed.unwrap_or_else(|refused| refused.end("the parts of the weights"))
    }

    /// [p] what each process has of a unit, in bytes.
    fn n_bytes_of(&self, unit: Unit) -> Vec<usize> {
        let forms = &self.part(unit).forms;
        let of_rank = |rank| {
            forms.iter().map(|(_, form)| self.range(form.n_bytes(), rank).len()).sum::<usize>()
        };
        (0..self.holders.members.n_ranks()).map(of_rank).collect()
    }

    /// Shapes: `bytes` of each process in turn, its part of each matrix.
    fn put_together(&self, unit: Unit, bytes: Slice<'_, u8>) -> Matrices {
        // Where the next bytes of each process are.
        let mut next = Vec::new();
        let mut end = 0;
        for n_bytes in self.n_bytes_of(unit) {
            next.push(end);
            end += n_bytes;
        }
        let mut matrices = Matrices::new();
        for (index, form) in &self.part(unit).forms {
            let piece = |(rank, next): (usize, &mut usize)| {
                let start = *next;
                *next += self.range(form.n_bytes(), rank).len();
                bytes.part(start..*next)
            };
            let mut pieces = next.iter_mut().enumerate().map(piece).collect();
            if matrices.len() <= *index {
                matrices.resize_with(index + 1, || None);
            }
            matrices[*index] = Some(form.put_together(&mut pieces));
        }
        matrices
    }

    /// Tells the others what this process runs next, and gives what is run: by any process, and
    /// whether by one of those that hold the model with this one.
    fn announce(&self, own: Said) -> Result<(Said, bool), CollectiveError> {
        let everyone = &self.holders.everyone;
        let (rank, n_ranks) = (everyone.rank(), everyone.n_ranks());
        let own = to_number(own).to_le_bytes();
        let said = everyone
            .start(move |line| line.all_gather_known(&own, &vec![own.len(); n_ranks]))
            .wait()?;
        let said = said.as_chunks().0.iter().map(|&bytes| of_number(u64::from_le_bytes(bytes)));
        let said: Vec<Said> = said.collect();
        let is_ours =
            self.holders.members.ranks().iter().any(|&rank| matches!(said[rank], Said::Passage(_)));
        let mut run: Vec<Said> = said.into_iter().filter(|said| *said != Said::Nothing).collect();
        run.dedup();
        match *run {
            [] => Ok((Said::Nothing, false)),
            [said] => Ok((said, is_ours)),
            _ => Err(CollectiveError::Nonsense {
                rank,
                what: format!("passes over the model that differ: {run:?}"),
            }),
        }
    }
}

/// From here on numbers of layers are added, twice.
const LAYERS: u64 = 16;

fn to_number(said: Said) -> u64 {
    match said {
        Said::Nothing => 0,
        Said::Wait => 1,
        Said::Passage(Passage::Up) => 2,
        Said::Passage(Passage::Head) => 3,
        Said::Passage(Passage::Layers) => 4,
        Said::Passage(Passage::Down(first)) => LAYERS + 2 * first as u64,
        Said::Passage(Passage::Layer(layer)) => LAYERS + 2 * layer as u64 + 1,
    }
}

fn of_number(number: u64) -> Said {
    let layer = || usize::try_from(number.saturating_sub(LAYERS) / 2).unwrap_or(usize::MAX);
    match number {
        0 => Said::Nothing,
        1 => Said::Wait,
        2 => Said::Passage(Passage::Up),
        3 => Said::Passage(Passage::Head),
        4 => Said::Passage(Passage::Layers),
        _ if number.is_multiple_of(2) => Said::Passage(Passage::Down(layer())),
        _ => Said::Passage(Passage::Layer(layer())),
    }
}

/// Ops give no errors: what they cannot go on after ends the run's work (see
/// [`Failure`](forgelm_kernels_api::Failure)), and so does this.
fn or_end<T>(result: Result<T, CollectiveError>) -> T {
    result.unwrap_or_else(|error| resume_unwind(Box::new(error)))
}

/// The others wait no longer for passes that the leader will not run any more.
impl Drop for Parts {
    fn drop(&mut self) {
        // An error is told by what is called next.
        let _ = self.let_go();
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("holders", &self.holders).finish_non_exhaustive()
    }
}
