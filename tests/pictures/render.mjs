// node render.mjs dashboard.json data.json out.png
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const WIDTH = 1600;
const here = path.dirname(fileURLToPath(import.meta.url));
const [dashboardFile, dataFile, out] = process.argv.slice(2);
if (!out) { console.error('usage: node render.mjs dashboard.json data.json out.png'); process.exit(2); }
const read = (f) => JSON.parse(readFileSync(f, 'utf8'));
const input = JSON.stringify({ dashboard: read(dashboardFile), data: read(dataFile) }).replaceAll('<', '\\u003c');

const built = await build({
  entryPoints: [path.join(here, 'page.jsx')], bundle: true, write: false, outdir: path.join(here, 'dist'), format: 'esm', target: 'es2022',
  minify: true, jsx: 'automatic', mainFields: ['browser', 'module', 'main'], external: ['stream'], loader: { '.ttf': 'empty' }, logLevel: 'error',
  define: { 'process.env.NODE_ENV': '"production"', 'process.env.JEST_WORKER_ID': 'undefined', global: 'window' },
});
const bundle = (ext) => built.outputFiles.find((f) => f.path.endsWith(ext)).contents;
const html = `<!doctype html><meta charset="utf-8"><title>dashboard</title><link rel="stylesheet" href="/page.css">
<body style="margin:0;overflow:hidden"><div id="root"></div><script>window.__input=${input}</script><script type="module" src="/page.js"></script>`;

// Grafana's styles ask for these two fonts; the npm packages of Grafana do not have them, @fontsource does.
const font = (url) => url.includes('/inter/')
  ? `node_modules/@fontsource/inter/files/inter-latin-${url.includes('Medium') ? 500 : 400}-normal.woff2`
  : 'node_modules/@fontsource/roboto-mono/files/roboto-mono-latin-400-normal.woff2';
const types = { '.svg': 'image/svg+xml', '.woff2': 'font/woff2', '.js': 'text/javascript', '.css': 'text/css', '.html': 'text/html' };
const problems = [];
const server = createServer((req, res) => {
  const url = new URL(req.url, 'http://x').pathname;
  try {
    const body = url === '/' ? html : url === '/page.js' || url === '/page.css' ? bundle(path.extname(url)) : url === '/favicon.ico' ? ''
      : readFileSync(path.join(here, url.startsWith('/public/fonts/') ? font(url) : path.join('node_modules/@grafana/ui/dist', url)));
    res.writeHead(200, { 'content-type': types[path.extname(url)] ?? 'text/html' }).end(body);
  } catch { problems.push('not found: ' + url); res.writeHead(404).end(); }
}).listen(0, '127.0.0.1');
await new Promise((r) => server.once('listening', r));

const profile = mkdtempSync(path.join(tmpdir(), 'grafana-render-'));
const chromium = spawn('chromium', ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync', '--remote-debugging-pipe',
  `--user-data-dir=${profile}`, 'about:blank'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
const exited = new Promise((r) => chromium.once('exit', r));

// The DevTools protocol over the pipe: JSON, each message ended by a zero byte.
let rest = '', last = 0;
const waiting = new Map();
chromium.stdio[4].setEncoding('utf8').on('data', (chunk) => {
  const parts = (rest + chunk).split('\0');
  rest = parts.pop();
  for (const m of parts.map((p) => JSON.parse(p))) {
    if (m.id) waiting.get(m.id)(m);
    else if (m.method === 'Runtime.exceptionThrown') problems.push(m.params.exceptionDetails.exception?.description ?? m.params.exceptionDetails.text);
    else if (m.method === 'Runtime.consoleAPICalled' && m.params.type === 'error') problems.push(m.params.args.map((a) => a.value ?? a.description).join(' '));
  }
});
const call = (method, params = {}, sessionId) => new Promise((ok, no) => {
  waiting.set(++last, (m) => m.error ? no(new Error(`${method}: ${m.error.message}`)) : ok(m.result));
  chromium.stdio[3].write(JSON.stringify({ id: last, method, params, sessionId }) + '\0');
});

try {
  const { targetId } = await call('Target.createTarget', { url: 'about:blank' });
  const { sessionId } = await call('Target.attachToTarget', { targetId, flatten: true });
  const page = (method, params) => call(method, params, sessionId);
  const size = (height) => page('Emulation.setDeviceMetricsOverride', { width: WIDTH, height, deviceScaleFactor: 1, mobile: false });
  await page('Runtime.enable');
  await size(1000);
  await page('Page.navigate', { url: `http://127.0.0.1:${server.address().port}/` });
  let height;
  for (const end = Date.now() + 30e3; !height; await new Promise((r) => setTimeout(r, 100))) {
    if (Date.now() > end) throw new Error('the page was not ready in 30 s\n' + [...new Set(problems)].join('\n'));
    height = (await page('Runtime.evaluate', { expression: 'window.__height' })).result.value;
  }
  await size(height);
  await new Promise((r) => setTimeout(r, 500));
  writeFileSync(out, Buffer.from((await page('Page.captureScreenshot', { format: 'png' })).data, 'base64'));
} finally {
  await call('Browser.close').catch(() => {});
  await exited;
  server.close();
  server.closeAllConnections();
  rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
}
if (problems.length) { console.error([...new Set(problems)].join('\n')); process.exitCode = 1; }
