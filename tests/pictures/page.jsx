// Draws a Grafana dashboard with Grafana's own panel components; window.__input = {dashboard, data}.
import React from 'react';
import { createRoot } from 'react-dom/client';
import 'uplot/dist/uPlot.min.css';
import {
  FieldType, LoadingState, Registry, ThemeContext, ThresholdsMode, applyFieldOverrides, createTheme, dateTime,
  getDisplayProcessor, getDisplayValueAlignmentFactors, getFieldDisplayValues, identityOverrideProcessor,
  toDataFrame, VizOrientation,
} from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, Icon, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';

const CELL = 30, GAP = 8, PAD = 16, COLS = 24;
const { dashboard, data } = window.__input;
const theme = createTheme({ colors: { mode: 'dark' } });
const timeZone = !dashboard.timezone ? 'browser' : dashboard.timezone;
const timeRange = { from: dateTime(data.from), to: dateTime(data.to), raw: { from: dateTime(data.from), to: dateTime(data.to) } };
const sameText = (s) => s;

// What the panel plugins (which are no part of the npm packages) set where the dashboard is silent.
const baseThresholds = { mode: ThresholdsMode.Absolute, steps: [{ color: 'green', value: -Infinity }, { color: 'red', value: 80 }] };
const timeseriesCustom = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', showPoints: 'auto', pointSize: 5,
  spanNulls: false, axisPlacement: 'auto', axisLabel: '', axisColorMode: 'text', axisBorderShow: false, axisCenteredZero: false,
  barAlignment: 0, barWidthFactor: 0.6, scaleDistribution: { type: 'linear' }, stacking: { mode: 'none', group: 'A' },
  thresholdsStyle: { mode: 'off' }, hideFrom: { legend: false, tooltip: false, viz: false },
};

function fieldConfigOf(panel) {
  const lines = panel.type === 'timeseries';
  const { defaults = {}, overrides = [] } = panel.fieldConfig ?? {};
  const thresholds = defaults.thresholds ?? baseThresholds;
  return {
    defaults: {
      color: { mode: lines ? 'palette-classic' : 'thresholds' }, mappings: [],
      ...defaults,
      thresholds: { ...thresholds, steps: thresholds.steps.map((s) => ({ ...s, value: s.value ?? -Infinity })) },
      custom: { ...(lines && timeseriesCustom), ...defaults.custom },
    },
    overrides,
  };
}

// The field options that defaults and overrides can set; an override names a custom one "custom.<path>".
function registryOf(fieldConfig) {
  const paths = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'mappings', 'thresholds', 'links'];
  const custom = new Set(Object.keys(fieldConfig.defaults.custom).map((k) => 'custom.' + k));
  fieldConfig.overrides.forEach((o) => o.properties.forEach((p) => p.id.startsWith('custom.') && custom.add(p.id)));
  return new Registry(() => [...paths, ...custom].map((id) => ({
    id, name: id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'),
    process: identityOverrideProcessor, shouldApply: (f) => !id.startsWith('custom.') || f.type !== FieldType.time,
  })));
}

// One frame a series, as the Prometheus data source hands them over.
function framesOf(panel, fieldConfig) {
  const frames = (data.panels[panel.id] ?? []).filter((s) => s.points.length).map(({ legend, points }, i) => {
    const t = points.map((p) => p[0]);
    const step = Math.min(...t.slice(1).map((x, j) => x - t[j]));
    return toDataFrame({
      refId: 'A' + i, name: legend,
      fields: [
        { name: 'Time', type: FieldType.time, values: t, config: Number.isFinite(step) ? { interval: step } : {} },
        { name: 'Value', type: FieldType.number, values: points.map((p) => p[1]), config: { displayNameFromDS: legend } },
      ],
    });
  });
  return applyFieldOverrides({ data: frames, fieldConfig, fieldConfigRegistry: registryOf(fieldConfig), replaceVariables: sameText, theme, timeZone });
}

const reducedValues = (panel, frames, fieldConfig, sparkline) => getFieldDisplayValues({
  fieldConfig, reduceOptions: panel.options.reduceOptions ?? { calcs: ['lastNotNull'], values: false, fields: '' },
  replaceVariables: sameText, theme, data: frames, sparkline, timeZone,
});

function NoData() {
  return <div style={{ height: '100%', display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.secondary }}>No data</div>;
}

const draw = {
  timeseries: ({ panel, frames, width, height }) => !frames.length ? <NoData /> : (
    <TimeSeries frames={frames} width={width} height={height} timeRange={timeRange} timeZone={timeZone} structureRev={1}
      legend={{ calcs: [], displayMode: 'list', placement: 'bottom', showLegend: true, ...panel.options.legend }} options={panel.options} />
  ),
  stat: ({ panel, frames, fieldConfig, width, height }) => {
    const o = { colorMode: 'value', graphMode: 'area', justifyMode: 'auto', textMode: 'auto', orientation: 'auto', ...panel.options };
    return (
      <VizRepeater getValues={() => reducedValues(panel, frames, fieldConfig, o.graphMode !== 'none')}
        getAlignmentFactors={getDisplayValueAlignmentFactors}
        autoGrid orientation={o.orientation} width={width} height={height} source={frames} renderCounter={0}
        renderValue={({ value, alignmentFactors, width, height, count }) => {
          const sparkline = value.sparkline && { ...value.sparkline, timeRange };
          return <BigValue value={value.display} count={count} sparkline={sparkline} colorMode={o.colorMode} graphMode={o.graphMode}
            justifyMode={o.justifyMode} textMode={o.textMode === 'auto' && count === 1 ? 'value' : o.textMode} alignmentFactors={alignmentFactors}
            text={o.text} width={width} height={height} theme={theme} />;
        }} />
    );
  },
  bargauge: ({ panel, frames, fieldConfig, width, height }) => {
    if (!frames.length) return <NoData />;
    const o = { displayMode: 'gradient', orientation: 'auto', showUnfilled: true, valueMode: 'color', namePlacement: 'auto', minVizWidth: 8, minVizHeight: 16, maxVizHeight: 300, ...panel.options };
    return (
      <VizRepeater getValues={() => reducedValues(panel, frames, fieldConfig, false)}
        getAlignmentFactors={getDisplayValueAlignmentFactors}
        orientation={o.orientation} width={width} height={height} source={frames} renderCounter={0} itemSpacing={o.displayMode === 'lcd' ? 2 : 10}
        minVizWidth={o.minVizWidth} minVizHeight={o.minVizHeight} maxVizHeight={o.maxVizHeight}
        renderValue={({ value, alignmentFactors, orientation, width, height, count }) => (
          <BarGauge value={value.display} width={width} height={height} orientation={orientation} field={value.field} text={o.text}
            display={value.view?.getFieldDisplayProcessor(value.colIndex ?? 0) ?? ((v) => getDisplayProcessor({ field: { config: value.field }, theme })(v))}
            theme={theme} itemSpacing={o.displayMode === 'lcd' ? 2 : 10} lcdCellWidth={12} displayMode={o.displayMode} showUnfilled={o.showUnfilled}
            valueDisplayMode={o.valueMode} namePlacement={o.namePlacement} isOverflow={false}
            alignmentFactors={count > 1 ? { ...alignmentFactors } : undefined} />
        )} />
    );
  },
};

function Panel({ panel, style }) {
  const { width, height } = style;
  if (panel.type === 'row') {
    return <div style={{ ...style, display: 'flex', alignItems: 'center', gap: 8, fontSize: theme.typography.h5.fontSize, fontWeight: 500 }}>
      <Icon name="angle-down" />{panel.title}</div>;
  }
  const fieldConfig = fieldConfigOf(panel);
  const frames = framesOf(panel, fieldConfig);
  const Draw = draw[panel.type];
  return <div style={style}>
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height} loadingState={LoadingState.Done}>
      {(w, h) => Draw ? <Draw panel={panel} frames={frames} fieldConfig={fieldConfig} width={w} height={h} /> : <div>Panel type {panel.type} is not drawn.</div>}
    </PanelChrome>
  </div>;
}

function Dashboard() {
  const column = (document.documentElement.clientWidth - 2 * PAD - (COLS - 1) * GAP) / COLS;
  const span = (n, cell) => Math.round(n * cell + (n - 1) * GAP);
  const rows = Math.max(...dashboard.panels.map(({ gridPos: g }) => g.y + g.h));
  return <div style={{ position: 'relative', height: span(rows, CELL) + 2 * PAD }}>
    {dashboard.panels.map((p) => {
      const { x, y, w, h } = p.gridPos;
      return <Panel key={p.id} panel={p} style={{
        position: 'absolute', left: Math.round(PAD + x * (column + GAP)), top: PAD + y * (CELL + GAP), width: span(w, column), height: span(h, CELL),
      }} />;
    })}
  </div>;
}

const root = createRoot(document.getElementById('root'));
const show = (what) => root.render(<ThemeContext.Provider value={theme}><GlobalStyles />{what}</ThemeContext.Provider>);
const rest = (ms) => new Promise((r) => setTimeout(r, ms));
show(null); // the fonts first: Grafana measures its texts on a canvas
await rest(50);
await Promise.all(['400 12px Inter', '500 14px Inter', '400 12px "Roboto Mono"'].map((f) => document.fonts.load(f)));
show(<Dashboard />);
await rest(1500);
window.__height = document.getElementById('root').scrollHeight;
