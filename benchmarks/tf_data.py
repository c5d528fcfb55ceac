"""tf.data input pipelines for `benchmarks.input_pipeline`, which starts this file with a Python that has TensorFlow.

For every line `NAME SKIP BATCHES` on stdin: an iterator is made, SKIP batches are taken, then BATCHES against the clock;
`SECONDS CPU_SECONDS BYTES_AN_IMAGE` go to stdout.
"""

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
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        WHOLE,
        min_object_covered=0.1,
        aspect_ratio_range=(0.75, 1.33),
        area_range=(0.05, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, size


def distort(image):
    """Brightness, saturation, [-1, 1]: the same in both pipelines. `image` float32 in [0, 1]."""
    image = tf.image.random_brightness(image, 32 / 255)
    image = tf.image.random_saturation(image, 0.5, 1.5)
    return (tf.clip_by_value(image, 0.0, 1.0) - 0.5) * 2.0


def original(example, size):
    """In the order of the original: everything decoded, turned to float, then cropped and resized."""
    features = tf.io.parse_single_example(example, FEATURES)
    image = tf.image.convert_image_dtype(tf.io.decode_jpeg(features['image/encoded'], channels=3), tf.float32)
    begin, extent = crop_box(tf.shape(image))
    image = tf.compat.v1.image.resize_bilinear(tf.slice(image, begin, extent)[None], (size, size))[0]
    return distort(tf.image.random_flip_left_right(image)), tf.cast(features['image/class/label'], tf.int32)


def tuned(example, size):
    """Only the crop is decoded, the rest works on the small image."""
    features = tf.io.parse_single_example(example, FEATURES)
    begin, extent = crop_box(tf.io.extract_jpeg_shape(features['image/encoded']))
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.io.decode_and_crop_jpeg(features['image/encoded'], window, channels=3)
    image = tf.compat.v1.image.resize_bilinear(image[None], (size, size))[0] / 255.0
    return distort(tf.image.random_flip_left_right(image)), tf.cast(features['image/class/label'], tf.int32)


def pipeline(name, shards, batch_size, size, workers):
    """`original` with a map over as many threads as cores and one batch ahead, `tuned` with what tf.data offers."""
    data = tf.data.Dataset.from_tensor_slices(shards)
    if name == 'original':
        data = data.interleave(tf.data.TFRecordDataset, cycle_length=4).shuffle(1000).repeat()
        return data.map(lambda e: original(e, size), num_parallel_calls=workers).batch(batch_size, True).prefetch(1)
    data = data.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    data = data.shuffle(1000).repeat()
    data = data.map(lambda e: tuned(e, size), num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    return data.batch(batch_size, True, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).with_options(options)


def main():
    directory, batch_size, size, workers = sys.argv[1], *map(int, sys.argv[2:])
    shards = sorted(glob.glob(os.path.join(directory, 'train-*-of-*')))
    print(tf.__version__, flush=True)
    for line in sys.stdin:
        name, skip, batches = line.split()
        iterator = iter(pipeline(name, shards, batch_size, size, workers))
        for _ in range(int(skip)):
            next(iterator)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(batches)):
            batch = next(iterator)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(seconds, cpu, sum(t.shape.num_elements() * t.dtype.size for t in batch) / batch_size, flush=True)


if __name__ == '__main__':
    main()
