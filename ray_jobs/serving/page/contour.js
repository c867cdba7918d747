// Marching squares: the contour of a map at a threshold, as a path in pixels of the map.

// Returns a Path2D of line segments for a row-major map of `width` by `height` values between 0 and
// 1. The centre of the first pixel is (0.5, 0.5). A border pixel's value extends to the map's edge,
// and outside of the map the value is 0, so a lesion at the edge is closed along the edge.
export function contourPath(map, width, height, threshold) {
  const path = new Path2D();
  const [xs, ys] = [gridCoordinates(width), gridCoordinates(height)];
  const valueAt = (column, row) => {
    const outside = column === 0 || row === 0 || column === width + 3 || row === height + 3;
    return outside ? 0 : map[clamp(row - 2, height) * width + clamp(column - 2, width)];
  };
  for (let row = 0; row < height + 3; row++) {
    for (let column = 0; column < width + 3; column++) {
      // Corners clockwise from the upper left; side i connects corner i to the next.
      const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => [
        xs[column + x], ys[row + y], valueAt(column + x, row + y),
      ]);
      const inside = corners.map(([, , value]) => value > threshold);
      if (inside.every((corner) => corner === inside[0])) continue;
      const crossings = corners
        .map((from, i) => [from, corners[(i + 1) % 4], inside[i] !== inside[(i + 1) % 4]])
        .filter(([, , crossed]) => crossed)
        .map(([from, to]) => interpolate(from, to, threshold));
      const [a, b, c, d] = crossings;
      if (crossings.length === 2) addSegment(path, a, b);
      else {
        // A saddle point: the mean of the corners decides which opposite corners are connected.
        const middle = corners.reduce((sum, [, , value]) => sum + value / 4, 0) > threshold;
        const [first, second] = inside[0] === middle ? [[a, b], [c, d]] : [[d, a], [b, c]];
        addSegment(path, ...first);
        addSegment(path, ...second);
      }
    }
  }
  return path;
}

// The pixel centres, and each edge twice: with the border pixel's value, and with 0 outside of it.
const gridCoordinates = (length) => [0, 0, ...Array.from({ length }, (_, i) => i + 0.5), length, length];

const clamp = (index, length) => Math.min(Math.max(index, 0), length - 1);

function interpolate([x0, y0, from], [x1, y1, to], threshold) {
  const fraction = (threshold - from) / (to - from);
  return [x0 + fraction * (x1 - x0), y0 + fraction * (y1 - y0)];
}

function addSegment(path, from, to) {
  path.moveTo(...from);
  path.lineTo(...to);
}
