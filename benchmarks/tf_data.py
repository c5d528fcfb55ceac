"""tf.data pipelines for `benchmarks.input_pipeline`, which starts this file with a Python that has TensorFlow. For a line
`NAME SKIP BATCHES` on stdin an iterator is made, SKIP batches are taken, then `ready` goes to stdout; at the next line
BATCHES are taken, then `done` goes to stdout."""

import glob
import os
import sys

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


def original(example, size):
    """In the order of the original: everything decoded, turned to float, then cropped and resized."""
    features = tf.io.parse_single_example(example, FEATURES)
    image = tf.image.convert_image_dtype(tf.io.decode_jpeg(features['image/encoded'], channels=3), tf.float32)
    image = tf.slice(image, *crop_box(tf.shape(image)))[None]
    return distort(tf.compat.v1.image.resize_bilinear(image, (size, size))[0]), features['image/class/label']


def tuned(example, size):
    """Only the crop is decoded, the rest works on the small image."""
    features = tf.io.parse_single_example(example, FEATURES)
    begin, extent = crop_box(tf.io.extract_jpeg_shape(features['image/encoded']))
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.io.decode_and_crop_jpeg(features['image/encoded'], window, channels=3)[None]
    return distort(tf.compat.v1.image.resize_bilinear(image, (size, size))[0] / 255.0), features['image/class/label']


def pipeline(name, shards, batch_size, size, workers):
    """`original` with a map over as many threads as cores and one batch ahead, `tuned` with what tf.data offers."""
    fast = name == 'tuned'
    calls = {'num_parallel_calls': tf.data.AUTOTUNE, 'deterministic': False} if fast else {}
    data = tf.data.Dataset.from_tensor_slices(shards).interleave(tf.data.TFRecordDataset, cycle_length=4, **calls)
    calls = calls or {'num_parallel_calls': workers}
    data = data.shuffle(1000).repeat().map(lambda e: (tuned if fast else original)(e, size), **calls)
    options = tf.data.Options()
    if fast:
        options.threading.private_threadpool_size = workers
    data = data.batch(batch_size, True, **({'num_parallel_calls': tf.data.AUTOTUNE} if fast else {}))
    return data.prefetch(tf.data.AUTOTUNE if fast else 1).with_options(options)


def main():
    directory, batch_size, size, workers = sys.argv[1], *map(int, sys.argv[2:])
    shards = sorted(glob.glob(os.path.join(directory, 'train-*-of-*')))
    print(tf.__version__, flush=True)
    for line in sys.stdin:
        name, skip, batches = line.split()
        iterator = iter(pipeline(name, shards, batch_size, size, workers))
        for count, word in ((skip, 'ready'), (batches, 'done')):
            for _ in range(int(count)):
                next(iterator)
            print(word, flush=True)
            if word == 'ready':
                sys.stdin.readline()


if __name__ == '__main__':
    main()
