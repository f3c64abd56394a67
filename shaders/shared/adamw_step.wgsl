// What a step of AdamW makes of four weights and their moments. Needs: params with the settings of a step.
struct Stepped {
    weight: vec4<f32>,
    first: vec4<f32>,
    second: vec4<f32>,
}

fn adamw_step(gradient: vec4<f32>, weight: vec4<f32>, first: vec4<f32>, second: vec4<f32>) -> Stepped {
    let mean = params.beta1 * first + params.rest1 * gradient;
    let squares = params.beta2 * second + params.rest2 * (gradient * gradient);
    let divisor = sqrt(squares) * params.root + params.epsilon;
    return Stepped(params.kept * weight - params.pace * (mean / divisor), mean, squares);
}
