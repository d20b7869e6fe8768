//! The checker: what Rhai compiles silently and would only fail at run time, found when the script is loaded.

use super::{
    api::{CALLS, HostCall},
    error::{ScriptError, did_you_mean},
    run::Declared,
};
use rhai::{AST, ASTNode, Dynamic, Engine, Expr, FnCallExpr, FnPtr, Position, Stmt};
use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashSet},
};

/// Function names with the numbers of values that they take.
pub type Arities = BTreeMap<String, BTreeSet<usize>>;

/// What the language itself offers, and does not list among its functions.
const KEYWORDS: &[&str] =
    &["call", "curry", "is_def_fn", "is_def_var", "is_shared", "type_of", "print", "debug", "Fn", "this"];
/// What the language has and bots have not.
const CLOSED: &[&str] = &["sleep", "timestamp", "exit"];
/// These make a function out of a name.
const POINTERS: &[&str] = &["Fn"];
/// Uses of a conversation: a handler that reaches one of these is about a person.
const PERSONAL: &[&str] = &["say", "state", "user"];

/// The functions of the language that `engine` knows.
pub fn builtins(engine: &Engine) -> Arities {
    let mut known = Arities::new();
    for signature in engine.gen_fn_signatures(true) {
        let Some((name, rest)) = signature.split_once('(') else { continue };
        let parameters = rest.split_once(')').map_or("", |(inside, _)| inside);
        let count = if parameters.trim().is_empty() { 0 } else { parameters.split(',').count() };
        known.entry(name.trim().to_owned()).or_default().insert(count);
    }
    CLOSED.iter().for_each(|name| drop(known.remove(*name)));
    known
}

/// The names that the top level defines: constants, functions, and variables that functions cannot see.
#[derive(Debug, Default)]
pub struct TopLevel {
    pub functions: Vec<String>,
    pub constants: Vec<String>,
    pub variables: Vec<String>,
}

/// Reads the top level of a script that was compiled without optimisation.
pub fn top_level(ast: &AST) -> TopLevel {
    let functions = ast.iter_functions().map(|function| function.name.to_owned()).collect();
    let mut found = TopLevel { functions, ..TopLevel::default() };
    for statement in ast.statements() {
        if let Stmt::Var(definition, flags, _) = statement {
            let name = definition.0.name.to_string();
            let constant = flags.intersects(rhai::ASTFlags::CONSTANT);
            if constant { found.constants.push(name) } else { found.variables.push(name) }
        }
    }
    found
}

/// A script under examination.
pub struct Checker<'a> {
    /// The file's name.
    pub file: &'a str,
    /// Its text.
    pub source: &'a str,
    /// Its tree.
    pub ast: &'a AST,
    /// The language's functions.
    pub builtins: &'a Arities,
    /// What each function calls and touches, found when it is first asked for.
    pub uses: OnceCell<BTreeMap<String, Uses>>,
}

/// What one function calls and touches.
#[derive(Debug, Default)]
pub struct Uses {
    calls: BTreeSet<String>,
    variables: BTreeSet<String>,
}

impl Checker<'_> {
    /// The script's own functions.
    pub fn functions(&self) -> Arities {
        let mut known = Arities::new();
        for function in self.ast.iter_functions() {
            known.entry(function.name.to_owned()).or_default().insert(function.params.len());
        }
        known
    }

    /// Calls of functions that do not exist or take another number of values, and names that are taken.
    pub fn calls(&self) -> Vec<ScriptError> {
        let own = self.functions();
        let fields = self.field_names();
        let mut errors: Vec<_> = own.keys().filter_map(|name| self.taken(name)).collect();
        self.ast.walk(&mut |path| {
            if let Some(call) = path.last().and_then(called) {
                errors.extend(self.call(call, &own, &fields));
            }
            true
        });
        errors
    }

    /// Handlers that the top level names: each must exist, and a topic's must not ask.
    pub fn handlers(&self, declared: &Declared) -> Vec<ScriptError> {
        let commands = declared.commands.iter().map(|(c, at)| ("command", c.name.as_str(), c.function.as_str(), *at));
        let topics = declared.topics.iter().map(|(t, at)| ("on_topic", t.filter.as_str(), t.function.as_str(), *at));
        let named: Vec<_> = commands.chain(topics).collect();
        let mut errors: Vec<_> = named.iter().filter_map(|named| self.handler(*named)).collect();
        errors.extend(self.doubled(declared));
        errors.extend(declared.topics.iter().filter_map(|(t, at)| self.asks_nobody(&t.function, *at)));
        errors
    }

    /// Whether `function`, or one that it calls, is about a person: then it runs once for each of them.
    pub fn per_person(&self, function: &str) -> bool {
        let reached = self.reached(function);
        PERSONAL.iter().any(|name| reached.calls.contains(*name) || reached.variables.contains(*name))
    }

    fn error(&self, at: Position, message: String) -> ScriptError {
        ScriptError::at(self.file, self.source, at, message)
    }

    fn taken(&self, name: &str) -> Option<ScriptError> {
        CALLS.iter().any(|call| call.name == name).then(|| {
            let line = self.source.lines().position(|line| line.trim_start().starts_with(&format!("fn {name}")));
            let at = line.map_or(Position::NONE, |line| Position::new(line as u16 + 1, 1));
            self.error(at, format!("\"{name}\" is a function of the bot runtime; choose another name for this one"))
        })
    }

    fn call(&self, (call, method, at): Called<'_>, own: &Arities, fields: &HashSet<String>) -> Option<ScriptError> {
        let (name, given) = (call.name.as_str(), call.args.len() + usize::from(method));
        if POINTERS.contains(&name) && call.args.first().is_none_or(|first| literal(first).is_none()) {
            return Some(self.error(
                at,
                format!("{name} wants the function's name as a text in quotes: the checker has to see it"),
            ));
        }
        if let Some(host) = CALLS.iter().find(|host| host.name == name) {
            return wrong_count(host, given).map(|message| self.error(at, message));
        }
        if KEYWORDS.contains(&name) || self.builtins.contains_key(name) || (method && fields.contains(name)) {
            return None;
        }
        match own.get(name) {
            // A method call gives its object as `this`, which is not among the parameters.
            Some(arities) if arities.contains(&call.args.len()) => None,
            Some(arities) => Some(self.error(at, counts(name, arities.iter().copied(), call.args.len()))),
            None => Some(self.error(at, self.unknown(name, own))),
        }
    }

    fn unknown(&self, name: &str, own: &Arities) -> String {
        let host = CALLS.iter().map(|call| call.name);
        let known = host.chain(own.keys().map(String::as_str)).chain(self.builtins.keys().map(String::as_str));
        let words = known.filter(|k| k.starts_with(|c: char| c.is_alphabetic()));
        format!("there is no function \"{name}\"{}", did_you_mean(name, words))
    }

    fn handler(&self, (call, label, function, at): (&str, &str, &str, Position)) -> Option<ScriptError> {
        let own = self.functions();
        if own.contains_key(function) {
            return None;
        }
        let hint = did_you_mean(function, own.keys().map(String::as_str));
        Some(self.error(at, format!("{call}({label:?}, … \"{function}\"): no such function in this file{hint}")))
    }

    fn doubled(&self, declared: &Declared) -> Vec<ScriptError> {
        let mut seen = HashSet::new();
        let twice = declared.commands.iter().filter(|(c, _)| !seen.insert(c.name.as_str()));
        twice.map(|(c, at)| self.error(*at, format!("the command \"{}\" is declared twice", c.name))).collect()
    }

    fn asks_nobody(&self, function: &str, at: Position) -> Option<ScriptError> {
        let reached = self.reached(function);
        let asks = ["ask", "confirm"].into_iter().find(|name| reached.calls.contains(*name))?;
        Some(self.error(
            at,
            format!("on_topic: \"{function}\" calls {asks}, but only a handler that a person started can wait for an answer; use say"),
        ))
    }

    /// Every name that stands for a map's field; calling such a field is legal.
    fn field_names(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        self.ast.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Expr(Expr::Property(property, _))) => names.extend([property.2.to_string()]),
                Some(ASTNode::Expr(Expr::Map(map, _))) => names.extend(map.1.keys().map(ToString::to_string)),
                _ => {}
            }
            true
        });
        names
    }

    /// Everything that `function` and the functions below it call and touch.
    fn reached(&self, function: &str) -> Uses {
        let own = self.uses.get_or_init(|| self.functions().into_keys().map(|f| (f.clone(), self.uses(&f))).collect());
        let mut all = Uses::default();
        let mut todo = vec![function];
        let mut visited = HashSet::new();
        while let Some(name) = todo.pop() {
            let Some(uses) = own.get(name).filter(|_| visited.insert(name)) else { continue };
            todo.extend(uses.calls.iter().map(String::as_str));
            all.calls.extend(uses.calls.iter().cloned());
            all.variables.extend(uses.variables.iter().cloned());
        }
        all
    }

    fn uses(&self, function: &str) -> Uses {
        let mut uses = Uses::default();
        let mut only = self.ast.clone_functions_only();
        only.retain_functions(|_, _, name, _| name == function);
        only.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Expr(Expr::Variable(variable, ..))) => uses.variables.extend([variable.1.to_string()]),
                Some(ASTNode::Expr(Expr::DynamicConstant(value, _))) => uses.calls.extend(pointed(value)),
                Some(node) => uses.calls.extend(called(node).into_iter().flat_map(names)),
                None => {}
            }
            true
        });
        uses
    }
}

/// The function that is called, and the one that it makes a pointer to, as in `Fn("say").call(x)`.
fn names((call, ..): Called<'_>) -> Vec<String> {
    let given = call.args.iter().filter(|_| POINTERS.contains(&call.name.as_str())).filter_map(literal);
    given.map(str::to_owned).chain([call.name.to_string()]).collect()
}

fn literal(argument: &Expr) -> Option<&str> {
    if let Expr::StringConstant(text, _) = argument { Some(text.as_str()) } else { None }
}

/// The function behind a closure.
fn pointed(value: &Dynamic) -> Option<String> {
    value.read_lock::<FnPtr>().map(|pointer| pointer.fn_name().to_owned())
}

/// A call, whether it is written as a method, and where.
type Called<'a> = (&'a FnCallExpr, bool, Position);

fn called<'a>(node: &ASTNode<'a>) -> Option<Called<'a>> {
    let (call, method, at) = match node {
        ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at)) => (call, false, *at),
        ASTNode::Expr(Expr::MethodCall(call, at)) => (call, true, *at),
        _ => return None,
    };
    (!call.is_operator_call() && !call.is_qualified()).then_some((call, method, at))
}

fn wrong_count(host: &HostCall, given: usize) -> Option<String> {
    let (fewest, most) = host.takes;
    (!(fewest..=most).contains(&given)).then(|| counts(host.name, fewest..=most, given))
}

/// `"say" takes 1 or 2 values, 3 given`
fn counts(name: &str, takes: impl IntoIterator<Item = usize>, given: usize) -> String {
    let takes: Vec<String> = takes.into_iter().map(|n| n.to_string()).collect();
    let noun = if takes == ["1"] { "value" } else { "values" };
    let words = match takes.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => takes.concat(),
    };
    format!("\"{name}\" takes {words} {noun}, {given} given")
}
