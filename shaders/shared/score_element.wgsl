// What one weight counts in a sum of importance: its value w, its gradient g and its place on the Fisher diagonal, f. What a
// form leaves out is not read. Needs: FORM.
fn score_element(w: f32, g: f32, f: f32) -> f32 {
    switch FORM {
        case 0u: {
            return abs(w);
        }
        case 1u: {
            return w * w;
        }
        case 2u: {
            return abs(w * g);
        }
        case 3u: {
            return w * w * f;
        }
        case 4u: {
            return abs(w * g - 0.5 * (w * w * f));
        }
        default: {
            return w * g;
        }
    }
}
