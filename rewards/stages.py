"""Which verifiers judge which part of a video that grows."""

from __future__ import annotations

from rewards.base import RewardModel
from rewards.frames import MotionAmount, MotionSmoothness, OnFrames


def stage_rewards(
    picture: RewardModel, video: RewardModel | None = None
) -> dict[str, dict[str, RewardModel]]:
    """Verifiers of the three stages of a tree of frames, for `samplers.ChunkLevel.stages`.

    As in Video-T1 (Liu et al. 2025, 2503.18942): the first chunk is judged by its first picture, those
    in the middle by how they move, the last as a whole video. There one vision-language model is asked
    other questions at each stage; here the motion is measured by differences of frames.

    Args:
        picture: a reward of pictures that knows the prompt, such as `CLIPScore`.
        video: of whole videos, in the end; None: the pictures' mean reward beside the motion.

    Returns:
        Verifiers by name under "first", "middle" and "last".

    Raises:
        ValueError: a reward of videos for pictures, or of pictures for videos.
    """
    if picture.of_videos:
        raise ValueError(
            f"picture must be a reward of pictures, but {picture.name!r} scores videos; give it as video"
        )
    if video is not None and not video.of_videos:
        raise ValueError(
            f"video must be a reward of videos, but {video.name!r} scores pictures; wrap it in OnFrames"
        )
    first: dict[str, RewardModel] = {picture.name: OnFrames(picture, "first")}
    middle: dict[str, RewardModel] = {
        "motion-smoothness": MotionSmoothness(),
        "motion-amount": MotionAmount(),
    }
    last = {picture.name: OnFrames(picture), **middle} if video is None else {video.name: video}
    return {"first": first, "middle": middle, "last": last}
