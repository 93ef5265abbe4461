//! 3×3 convolutions of pictures by the products of Hopper's warpgroups.

use candle_core::Result;

use super::conv::{Job, View};
use super::gpu::{Arg, Gpu, Source, Variant, int};

const CONV_HOPPER: Source = Source {
    name: "conv_hopper",
    text: concat!(include_str!("instructions.cuh"), include_str!("warpgroup.cuh"), include_str!("conv_hopper.cu")),
    own: true,
};

/// Shared memory of a block, in bytes.
const ROOM: usize = 231_424;

/// And of its barriers, at most.
const BARRIERS: usize = 256;

/// What a block makes at a time: 256 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Of the picture: 16, 64 or 128.
    columns: usize,
    /// Of 64 channels: 1, with all weights in shared memory, or 2.
    groups: usize,
}

impl Tile {
    /// The one for `outputs` channels of `view`, a 3×3 kernel's; `None` if they are so few that most of a product would be
    /// zeros, or the result is not as large as what the kernel sees.
    pub(super) fn of(view: &View, outputs: usize) -> Option<Self> {
        let zoom = match view.zoom {
            1 => 1,
            2 => 2,
            _ => return None,
        };
        let same = view.stride == 1 && view.before == [1, 1] && view.out == view.size.map(|side| side * zoom);
        (same && outputs > 8).then(|| Self {
            columns: columns(view.out[1]),
            groups: if outputs <= 64 && view.channels <= 64 { 1 } else { 2 },
        })
    }

    /// Whether `gpu` has these products and room for them.
    pub(super) fn runs_on(self, gpu: &Gpu) -> bool {
        gpu.arch == (9, 0) && gpu.shared >= ROOM + BARRIERS
    }

    /// Rows of source, addend and result must be whole units of 16 bytes (of 8, for a source that is enlarged).
    pub(super) fn run(self, gpu: &Gpu, job: &Job<'_>) -> Result<()> {
        let Self { columns, groups } = self;
        let view = job.view;
        let variant = Variant { dtype: job.dtype, vec: 0, steps: groups, head: columns };
        let (chunks, wide) = (view.channels.div_ceil(32), job.outputs.div_ceil(64 * groups));
        let count = wide * groups * chunks * 9 * 64 * 32;
        let packed = job.packed((&CONV_HOPPER, "conv_hopper_pack", variant), (count, chunks))?;
        let mut args = [job.source, packed.ptr, job.bias, job.add, job.out].map(Arg::Ptr).to_vec();
        args.extend([int(view.channels)?, int(view.size[0])?, int(view.size[1])?, Arg::Int(view.zoom)]);
        args.extend([int(job.outputs)?, Arg::Int(job.relu.into()), Arg::Float(job.most), int(view.batch)?]);
        let tiles = view.out[0].div_ceil(256 / columns) * view.out[1].div_ceil(columns) * wide * view.batch;
        let grid = (tiles.min(gpu.processors), 1, 1);
        gpu.launch((&CONV_HOPPER, "conv_hopper", variant), (grid, (512, 1, 1)), ROOM, &args)
    }
}

/// Columns of a tile for pictures that are `width` wide: long lines are read with less around them, short ones fit more
/// widths.
fn columns(width: usize) -> usize {
    [128, 64].into_iter().find(|&columns| width.is_multiple_of(columns)).unwrap_or(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAME: View = View {
        batch: 2,
        channels: 64,
        size: [24, 40],
        zoom: 1,
        before: [1, 1],
        kernel: [3, 3],
        stride: 1,
        out: [24, 40],
    };

    #[test]
    fn only_results_as_large_as_what_is_seen() {
        assert!(Tile::of(&SAME, 64).is_some());
        assert!(Tile::of(&View { zoom: 2, out: [48, 80], ..SAME }, 64).is_some());
        let others = [
            View { zoom: 2, ..SAME },
            View { zoom: 3, out: [72, 120], ..SAME },
            View { zoom: -2, out: [48, 80], ..SAME },
            View { before: [0, 0], ..SAME },
            View { before: [2, 2], ..SAME },
            View { out: [25, 41], ..SAME },
            View { stride: 2, out: [12, 20], ..SAME },
        ];
        assert!(others.iter().all(|view| Tile::of(view, 64).is_none()));
    }

    #[test]
    fn weights_stay_where_they_have_room() {
        let groups = |channels, outputs| Tile::of(&View { channels, ..SAME }, outputs).map(|tile| tile.groups);
        assert_eq!(groups(64, 8), None);
        assert_eq!([groups(64, 9), groups(64, 64)], [Some(1), Some(1)]);
        assert_eq!([groups(65, 64), groups(64, 65)], [Some(2), Some(2)]);
    }
}
