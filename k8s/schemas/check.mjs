// Validates custom resources against the schemas of their projects, as `@kubernetes-models` packages them.
//
// Reads a JSON list of objects and writes a JSON list of findings, each with the object and the field. The classes of the
// packages check values and required fields, their types tell fields that do not exist. Kubernetes' own objects, and
// those whose project has no package, are passed over.
import { readFileSync } from "node:fs";
import ts from "typescript";

const PACKAGES = {
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const moduleOf = ({ apiVersion }) => {
  const [group] = apiVersion.split("/");
  return group in PACKAGES ? `${PACKAGES[group]}/${apiVersion}` : undefined;
};
const objects = JSON.parse(readFileSync(0, "utf8")).filter(moduleOf);
const finding = ({ kind, metadata }, path, message) => `${[`${kind}/${metadata.name}`, path].join(" ").trim()}: ${message}`;

async function wrongValues(object) {
  const kind = (await import(moduleOf(object)))[object.kind];
  if (kind === undefined) return [finding(object, "kind", `is not one of ${object.apiVersion}`)];
  try {
    new kind(object).validate();
    return [];
  } catch (failure) {
    if (!failure.errors) throw failure;
    return failure.errors.map(({ instancePath, message }) => finding(object, instancePath.slice(1).replaceAll("/", "."), message));
  }
}

// Errors of TypeScript about kinds, values and required fields, which the classes find as well.
const VALUES = new Set([2305, 2322, 2724, 2739, 2740, 2741, 2820]);

// The object as a literal of its type: TypeScript rejects properties that the type does not have.
const sourceOf = (object) =>
  `import type { I${object.kind} as Kind } from "${moduleOf(object)}";\nexport const object: Kind = ${JSON.stringify(object)};\n`;

function wrongFields() {
  const names = objects.map((_, number) => `${import.meta.dirname ?? process.cwd()}/object-${number}.ts`);
  const options = { strict: true, noEmit: true, skipLibCheck: true, module: ts.ModuleKind.NodeNext, types: [] };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists, readFile } = host;
  const sources = new Map(objects.map((object, number) => [names[number], sourceOf(object)]));
  host.fileExists = (name) => sources.has(name) || fileExists(name);
  host.readFile = (name) => sources.get(name) ?? readFile(name);
  host.getSourceFile = (name, ...more) =>
    sources.has(name) ? ts.createSourceFile(name, sources.get(name), ts.ScriptTarget.Latest, true) : getSourceFile(name, ...more);
  const program = ts.createProgram(names, options, host);
  const faults = ts.getPreEmitDiagnostics(program).filter(({ code }) => !VALUES.has(code));
  return faults.map(({ file, start, messageText }) => {
    const object = objects[names.indexOf(file?.fileName)];
    const message = ts.flattenDiagnosticMessageText(messageText, " ");
    return object ? finding(object, pathOf(file, start), message) : message;
  });
}

function pathOf(file, position) {
  const path = [];
  let node = file;
  for (let next = file; next; ) {
    node = next;
    next = undefined;
    ts.forEachChild(node, (child) => {
      if (child.getStart(file) <= position && position < child.end) next = child;
    });
    if (ts.isPropertyAssignment(node)) path.push(node.name.text);
    if (next && ts.isArrayLiteralExpression(node)) path.push(node.elements.indexOf(next));
  }
  return path.join(".");
}

const findings = [...(await Promise.all(objects.map(wrongValues))).flat(), ...wrongFields()];
console.log(JSON.stringify([...new Set(findings)]));
