"""A tf.data pipeline for `benchmarks.input_pipeline`, which starts this file with a Python that has TensorFlow: for each
line on stdin a new iterator; the seconds of its batches after the first ones go to stdout."""

import glob
import os
import sys
import time

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
import tensorflow as tf

FEATURES = {'image/encoded': tf.io.FixedLenFeature([], tf.string), 'image/class/label': tf.io.FixedLenFeature([], tf.int64)}
WHOLE = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])


def crop_box(shape):
    """Offset and size (height, width, channels) of the random crop, as the original draws it."""
    ranges = {'aspect_ratio_range': (0.75, 1.33), 'area_range': (0.05, 1.0), 'max_attempts': 100, 'min_object_covered': 0.1}
    return tf.image.sample_distorted_bounding_box(shape, WHOLE, use_image_if_no_bounding_boxes=True, **ranges)[:2]


def distort(image):
    """Flip, brightness, saturation, [-1, 1]: the same in both pipelines. `image` float32 in [0, 1]."""
    image = tf.image.random_brightness(tf.image.random_flip_left_right(image), 32 / 255)
    return (tf.clip_by_value(tf.image.random_saturation(image, 0.5, 1.5), 0.0, 1.0) - 0.5) * 2.0


def decode(fast, size, example):
    """As the original: all is decoded, turned to float, then cropped and resized. If `fast`, only the crop is decoded, and
    the rest works on the small image."""
    features = tf.io.parse_single_example(example, FEATURES)
    encoded = features['image/encoded']
    if fast:
        begin, extent = crop_box(tf.io.extract_jpeg_shape(encoded))
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.cast(tf.io.decode_and_crop_jpeg(encoded, window, channels=3), tf.float32) / 255.0
    else:
        image = tf.image.convert_image_dtype(tf.io.decode_jpeg(encoded, channels=3), tf.float32)
        image = tf.slice(image, *crop_box(tf.shape(image)))
    return distort(tf.compat.v1.image.resize_bilinear(image[None], (size, size))[0]), features['image/class/label']


def pipeline(name, shards, batch_size, size, workers):
    """`original` with a map over as many threads as cores and one batch ahead, `tuned` with what tf.data offers."""
    fast = name == 'tuned'
    calls = {'num_parallel_calls': tf.data.AUTOTUNE, 'deterministic': False} if fast else {}
    data = tf.data.Dataset.from_tensor_slices(shards).interleave(tf.data.TFRecordDataset, cycle_length=4, **calls)
    calls = calls or {'num_parallel_calls': workers}
    data = data.shuffle(1000).repeat().map(lambda example: decode(fast, size, example), **calls)
    options = tf.data.Options()
    if fast:
        options.threading.private_threadpool_size = workers
    data = data.batch(batch_size, True, **({'num_parallel_calls': tf.data.AUTOTUNE} if fast else {}))
    return data.prefetch(tf.data.AUTOTUNE if fast else 1).with_options(options)


def main():
    directory, *numbers, name = sys.argv[1:]
    batch_size, size, workers, skipped, batches = map(int, numbers)
    shards = sorted(glob.glob(os.path.join(directory, 'train-*-of-*')))
    for _ in sys.stdin:
        iterator = iter(pipeline(name, shards, batch_size, size, workers))
        for _ in range(skipped):
            next(iterator)
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        print('done', time.perf_counter() - start, flush=True)
        sys.stdin.readline()
        del iterator  # it would make batches for ever
        print('finished', flush=True)


if __name__ == '__main__':
    main()
