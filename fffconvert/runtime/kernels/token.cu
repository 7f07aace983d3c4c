// Few tokens: a block takes one token through everything, so that one launch does the whole layer.
//
// A team of warps walks each tree. A path is serial, so what counts is how long one level takes: all of a row is in
// flight at once, and both children, which stand next to each other, are fetched while the sum goes through the warp.

__device__ __forceinline__ void prefetch_bytes(const void* from, index_t bytes, int place, int threads) {
  for (index_t at = place * 128; at < bytes; at += threads * 128) prefetch(static_cast<const char*>(from) + at);
}

__device__ __forceinline__ void add_row(const Rows& rows, int tree, int row, float factor, int column,
                                        float (&sum)[VECTOR]) {
  float w[VECTOR];
  load<true>(row_at(rows, tree, row) + column, w);
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) sum[e] = fmaf(factor, w[e], sum[e]);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    token_forward(const x_t* x, x_t* y, float* logits, index_t* leaf, Rows in, Rows out, Rows constant, Rows up,
                  Rows gate, Rows down, const void* bias, index_t bias_type, index_t trees, index_t activation,
                  index_t team_warps) {
  DYNAMIC_SHARED(memory);  // leaves [trees], factors of the path [trees, levels], hidden values [trees, up.count]
  __shared__ float parts[2][8];
  const int levels = static_cast<int>(in.count), forest = static_cast<int>(trees);
  int* leaves = reinterpret_cast<int*>(memory);
  float* factors = reinterpret_cast<float*>(leaves + forest);
  float* hidden = factors + forest * levels;

  const index_t token = blockIdx.x;
  const x_t* input = x + token * in.width;
  const int width = static_cast<int>(in.width), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32, size = static_cast<int>(team_warps), threads = 32 * size;
  const int team = warp / size, teams = warps / size, place = threadIdx.x % threads;

  int step = 0;
  for (int first = 0; first < forest; first += teams) {
    const bool active = first + team < forest;  // the others go along, for the barriers
    const int tree = active ? first + team : forest - 1;
    int path = 0;
    for (int k = 0; k < levels; ++k, ++step) {
      const int node = (1 << k) - 1 + path;
      if (k + 1 < levels) {
        prefetch_bytes(row_at(in, tree, 2 * node + 1), 2 * in.width * sizeof(row_t), place, threads);
      }
      float s = warp_sum(dot_part(row_at(in, tree, node), input, width, place, threads));
      if (size > 1) {
        if (lane == 0) parts[step % 2][warp] = s;
        __syncthreads();
        s = 0.0f;
        for (int w = 0; w < size; ++w) s += parts[step % 2][team * size + w];
      }
      s = affine(in, tree, node, s);
      path = 2 * path + (s > 0.0f);
      const int row = out.branches == 2 ? 2 * node + (s > 0.0f) : node;
      prefetch_bytes(row_at(out, tree, row), out.width * sizeof(row_t), place, threads);
      if (active && place == 0) {
        factors[tree * levels + k] = activate(activation, s) * scale_of(out, tree, row);
        if (logits) logits[(token * forest + tree) * levels + k] = s;
      }
    }
    if (active && place == 0) {
      leaves[tree] = path;
      if (leaf) leaf[token * forest + tree] = path;
    }
  }
  __syncthreads();

  const int units = up.weight ? static_cast<int>(up.count) : 0;
  for (int unit = warp; unit < forest * units; unit += warps) {
    const int tree = unit / units, row = leaves[tree] * units + unit % units;
    const float a = affine(up, tree, row, warp_sum(dot_part(row_at(up, tree, row), input, width, lane, 32)));
    float factor = activate(activation, a) * scale_of(down, tree, row);
    if (gate.weight) {
      factor *= affine(gate, tree, row, warp_sum(dot_part(row_at(gate, tree, row), input, width, lane, 32)));
    }
    if (lane == 0) hidden[unit] = factor;
  }
  if (units > 0) __syncthreads();

  for (int column = threadIdx.x * VECTOR; column < out.width; column += blockDim.x * VECTOR) {
    float sum[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] = bias ? scalar(bias, bias_type, column + e) : 0.0f;
    for (int tree = 0; tree < forest; ++tree) {
      const int end = leaves[tree];
#pragma unroll 4
      for (int k = 0; k < levels; ++k) {
        add_row(out, tree, row_of(out, end, k), factors[tree * levels + k], column, sum);
      }
      if (constant.weight) add_row(constant, tree, end, scale_of(constant, tree, end), column, sum);
#pragma unroll 4
      for (int unit = 0; unit < units; ++unit) {
        add_row(down, tree, end * units + unit, hidden[tree * units + unit], column, sum);
      }
    }
    store(y + token * out.width + column, sum);
  }
}
