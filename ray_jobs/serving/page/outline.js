// Marching squares: where a map crosses a threshold, as a path in pixels of the map.

// Returns a Path2D of lines for a map of `width` by `height` values between 0 and 1. The first
// pixel's centre is (0.5, 0.5). Up to the map's edge a border pixel's value holds, and beyond it is
// no lesion, so an outline runs along the edge.
export function outline(map, width, height, threshold) {
  const path = new Path2D();
  const [xs, ys] = [places(width), places(height)];
  const at = (column, row) => {
    const edge = column === 0 || row === 0 || column === width + 3 || row === height + 3;
    return edge ? 0 : map[clamp(row - 2, height) * width + clamp(column - 2, width)];
  };
  for (let row = 0; row < height + 3; row++) {
    for (let column = 0; column < width + 3; column++) {
      // Corners clockwise from the upper left one; side i leads from corner i to the next.
      const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => [
        xs[column + x], ys[row + y], at(column + x, row + y),
      ]);
      const inside = corners.map(([, , value]) => value > threshold);
      if (inside.every((one) => one === inside[0])) continue;
      const crossings = corners
        .map((from, i) => [from, corners[(i + 1) % 4], inside[i] !== inside[(i + 1) % 4]])
        .filter(([, , crossed]) => crossed)
        .map(([from, to]) => between(from, to, threshold));
      const [a, b, c, d] = crossings;
      if (crossings.length === 2) segment(path, a, b);
      else {
        // A saddle: its middle says which of two opposite corners belong together.
        const middle = corners.reduce((sum, [, , value]) => sum + value / 4, 0) > threshold;
        const [first, second] = inside[0] === middle ? [[a, b], [c, d]] : [[d, a], [b, c]];
        segment(path, ...first);
        segment(path, ...second);
      }
    }
  }
  return path;
}

// Pixel centres, and the edge twice at both ends: with the border's value, and without lesion.
const places = (length) => [0, 0, ...Array.from({ length }, (_, i) => i + 0.5), length, length];

const clamp = (index, length) => Math.min(Math.max(index, 0), length - 1);

function between([x0, y0, from], [x1, y1, to], threshold) {
  const part = (threshold - from) / (to - from);
  return [x0 + part * (x1 - x0), y0 + part * (y1 - y0)];
}

function segment(path, from, to) {
  path.moveTo(...from);
  path.lineTo(...to);
}
