#pragma once

#include "banana.h"
#include "double_well.h"
#include "funnel.h"
#include "gaussian.h"
#include "gaussian_mixture.h"
#include "perceptron.h"
#include "ring.h"
#include "rosenbrock.h"
