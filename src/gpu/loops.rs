//! Loops that nobody has proved to end: those of a user's WGSL.
//!
//! Mesa's software adapter leaves any loop after 65 535 rounds without a word, so an endless one behind the last store passes every
//! case there, and hangs a real GPU. Here a loop is left a little earlier, and that shows: the last word that the shader can reach of
//! each output is overwritten, where a verification keeps words that must stay.

use naga::{
    AddressSpace, ArraySize, BinaryOperator, Block, Expression, Function, GlobalVariable, Handle,
    Literal, LocalVariable, Module, Range, Scalar, Span, Statement, StorageAccess, Type, TypeInner,
};

/// Rounds of one loop, each time it is entered.
pub const MOST_ROUNDS: u32 = 60_000;

/// Bounds every loop of a valid module.
pub(super) fn bound(module: &mut Module) {
    let inner = TypeInner::Scalar(Scalar::U32);
    let counter = module.types.insert(Type { name: None, inner }, Span::UNDEFINED);
    let outputs = outputs(module);
    let functions = module.functions.iter_mut().map(|(_, function)| function);
    let entries = module.entry_points.iter_mut().map(|entry| &mut entry.function);
    for function in functions.chain(entries) {
        let mut body = std::mem::take(&mut function.body);
        Bounds { function: &mut *function, counter, outputs: &outputs }.block(&mut body);
        function.body = body;
    }
}

/// Arrays of no fixed size that a shader writes, and the types of their elements.
fn outputs(module: &Module) -> Vec<(Handle<GlobalVariable>, Handle<Type>)> {
    let written = module.global_variables.iter().filter(|(_, variable)| {
        matches!(variable.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE))
    });
    let array = |(handle, variable): (_, &GlobalVariable)| match module.types[variable.ty].inner {
        TypeInner::Array { base, size: ArraySize::Dynamic, .. } => {
            let plain =
                matches!(module.types[base].inner, TypeInner::Scalar(_) | TypeInner::Vector { .. });
            plain.then_some((handle, base))
        }
        _ => None,
    };
    written.filter_map(array).collect()
}

struct Bounds<'a> {
    function: &'a mut Function,
    counter: Handle<Type>,
    outputs: &'a [(Handle<GlobalVariable>, Handle<Type>)],
}

impl Bounds<'_> {
    fn block(&mut self, block: &mut Block) {
        let mut place = 0;
        while place < block.len() {
            let mut before = None;
            match &mut block[place] {
                Statement::Block(inner) => self.block(inner),
                Statement::If { accept, reject, .. } => {
                    self.block(accept);
                    self.block(reject);
                }
                Statement::Switch { cases, .. } => {
                    cases.iter_mut().for_each(|case| self.block(&mut case.body));
                }
                Statement::Loop { body, continuing, .. } => {
                    self.block(body);
                    self.block(continuing);
                    before = Some(self.bounded(body));
                }
                _ => {}
            }
            if let Some(statement) = before {
                block.splice(place..place, Block::from_vec(vec![statement]));
                place += 1;
            }
            place += 1;
        }
    }

    /// Counts a loop's rounds in its body. The statement that begins the count goes before the loop.
    fn bounded(&mut self, body: &mut Block) -> Statement {
        let name = Some("rounds".into());
        let variable = LocalVariable { name, ty: self.counter, init: None };
        let variable = self.function.local_variables.append(variable, Span::UNDEFINED);
        let rounds = self.add(Expression::LocalVariable(variable));
        let [zero, one, most] =
            [0, 1, MOST_ROUNDS].map(|number| self.add(Expression::Literal(Literal::U32(number))));
        let load = self.add(Expression::Load { pointer: rounds });
        let binary = |op, left, right| Expression::Binary { op, left, right };
        let over = self.add(binary(BinaryOperator::GreaterEqual, load, most));
        let next = self.add(binary(BinaryOperator::Add, load, one));
        let mut leave = Vec::new();
        for (output, element) in self.outputs {
            let array = self.add(Expression::GlobalVariable(*output));
            let length = self.add(Expression::ArrayLength(array));
            let index = self.add(binary(BinaryOperator::Subtract, length, one));
            let pointer = self.add(Expression::Access { base: array, index });
            let value = self.add(Expression::ZeroValue(*element));
            leave.push(Statement::Emit(Range::new_from_bounds(length, pointer)));
            leave.push(Statement::Store { pointer, value });
        }
        leave.push(Statement::Break);
        let (accept, reject) = (Block::from_vec(leave), Block::new());
        let count = Block::from_vec(vec![
            Statement::Emit(Range::new_from_bounds(load, next)),
            Statement::If { condition: over, accept, reject },
            Statement::Store { pointer: rounds, value: next },
        ]);
        body.splice(0..0, count);
        Statement::Store { pointer: rounds, value: zero }
    }

    fn add(&mut self, expression: Expression) -> Handle<Expression> {
        self.function.expressions.append(expression, Span::UNDEFINED)
    }
}
