// Rules for the pages and for what tests them. The linter is installed under target/, so its parts are asked for there.

import { createRequire } from 'node:module';

const need = createRequire(`${process.env.TOOLS}/config.cjs`);
const js = need('@eslint/js');
const json = need('@eslint/json').default ?? need('@eslint/json');

const names = (list) => Object.fromEntries(list.split(' ').map((name) => [name, 'readonly']));
const BROWSER = names('window document CustomEvent Event Node HTMLElement atob TextDecoder fetch setInterval console');
// What LuCI hands to a page, besides the modules that it requires.
const LUCI = names('L E _ N_ baseclass form fs poll rpc uci ui view daemon fields model parts presets');
const NODE = names('AbortSignal process console URL URLSearchParams Buffer setTimeout clearTimeout fetch');

// E(tag, attributes, text) takes bare text for HTML: a list is what makes it text.
const BARE_TEXT = {
    selector: 'CallExpression[callee.name="E"] > :matches(Identifier, Literal, TemplateLiteral, BinaryExpression, MemberExpression, CallExpression[callee.name="_"], CallExpression[callee.property.name="format"]):nth-child(3)',
    message: 'bare text becomes HTML: write [ text ]',
};
const MARKUP = { selector: 'MemberExpression[property.name=/^(innerHTML|outerHTML|insertAdjacentHTML|rawhtml)$/]', message: 'nothing goes into a page as HTML' };

const strict = { eqeqeq: ['error', 'always', { null: 'ignore' }], 'no-unused-vars': ['error', { args: 'none', caughtErrors: 'none' }], 'no-var': 'error', 'prefer-const': ['error', { destructuring: 'all' }] };

export default [
    {
        files: ['openwrt/**/*.js'],
        ...js.configs.recommended,
        languageOptions: { sourceType: 'script', ecmaVersion: 2022, globals: { ...BROWSER, ...LUCI }, parserOptions: { ecmaFeatures: { globalReturn: true } } },
        rules: { ...js.configs.recommended.rules, ...strict, 'no-restricted-syntax': ['error', BARE_TEXT, MARKUP] },
    },
    {
        files: ['tests/luci/standin.js'],
        languageOptions: { sourceType: 'script', ecmaVersion: 2022, globals: BROWSER },
        rules: { ...js.configs.recommended.rules, ...strict },
    },
    {
        files: ['tests/luci/*.mjs'],
        languageOptions: { sourceType: 'module', ecmaVersion: 2022, globals: NODE },
        rules: { ...js.configs.recommended.rules, ...strict },
    },
    { files: ['**/*.json'], plugins: { json }, language: 'json/json', rules: { ...json.configs.recommended.rules } },
];
